"""The VAE on large images: tiles that go through the layers together and share the statistics of every GroupNorm.

Works on diffusers' ``AutoencoderKL`` as it is, also when layers were replaced by others of the same interface.

Source: OSEDiff and PassionSR, specification 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

ENCODER_PAD = 32
DECODER_PAD = 11
_MULTIPLES = (32, 16, 8, 4, 2)

Interval = tuple[int, int]
Steps = Generator[tuple[nn.GroupNorm, Tensor], Tensor, Tensor]
OnProgress = Callable[[int, int], None]


class AxisTile(NamedTuple):
    """One tile on one axis, in pixels of the network's input.

    Args:
        read: What goes through the network.
        kept: What of it belongs to the result.
    """

    read: Interval
    kept: Interval


def is_tiled(height: int, width: int, tile: int, pad: int) -> bool:
    """Return whether an input of this size is cut into tiles (``tile`` 0 = never)."""
    return tile > 0 and max(height, width) > 2 * pad + tile


def axis_tiles(size: int, tile: int, pad: int) -> list[AxisTile]:
    """Return the tiles of one axis of length ``size``; what they keep joins without gaps.

    Args:
        size: Length of the axis.
        tile: Largest length of a tile's core.
        pad: Context on each side of a core, and the border that the outermost tiles take over.
    """
    count = max(1, math.ceil((size - 2 * pad) / tile))
    real = _rounded(math.ceil((size - 2 * pad) / count), tile)
    tiles = []
    for number in range(count):
        begin, end = pad + number * real, min(pad + (number + 1) * real, size)
        kept = (begin if begin > pad else 0, end if end < size - pad else size)
        tiles.append(AxisTile((max(0, begin - pad), min(size, end + pad)), kept))
    return tiles


def _rounded(size: int, largest: int) -> int:
    for multiple in _MULTIPLES:
        rounded = size + -size % multiple
        if rounded == size or rounded <= largest:
            return rounded
    return size


def encode_moments(vae: Any, image: Tensor, tile: int = 1024, on_progress: OnProgress | None = None) -> Tensor:
    """Return mean and log-variance of the posterior.

    Args:
        vae: diffusers' ``AutoencoderKL``.
        image: (B, 3, H, W) in [-1, 1], sides multiples of the VAE's factor.
        tile: Pixels of a tile's core, a multiple of the factor; 0 = the whole image at once.
        on_progress: Called with (done, all) after every group of layers.

    Returns:
        (B, 2C, H/f, W/f).
    """
    if is_tiled(image.shape[-2], image.shape[-1], tile, ENCODER_PAD):
        factor = 2 ** (len(vae.encoder.down_blocks) - 1)
        moments = _run_tiles(vae.encoder, _encoder_steps, image, tile, ENCODER_PAD, 1, factor, on_progress)
    else:
        moments = vae.encoder(image)
    quant: Tensor = moments if vae.quant_conv is None else vae.quant_conv(moments)
    return quant


def decode_latent(vae: Any, latent: Tensor, tile: int = 224, on_progress: OnProgress | None = None) -> Tensor:
    """Return the image of a latent.

    Args:
        vae: diffusers' ``AutoencoderKL``.
        latent: (B, C, h, w), in the VAE's own scale.
        tile: Latent pixels of a tile's core; 0 = the whole latent at once.
        on_progress: Called with (done, all) after every group of layers.

    Returns:
        (B, 3, f*h, f*w), about [-1, 1].
    """
    latent = latent if vae.post_quant_conv is None else vae.post_quant_conv(latent)
    if is_tiled(latent.shape[-2], latent.shape[-1], tile, DECODER_PAD):
        factor = 2 ** (len(vae.decoder.up_blocks) - 1)
        return _run_tiles(vae.decoder, _decoder_steps, latent, tile, DECODER_PAD, factor, 1, on_progress)
    image: Tensor = vae.decoder(latent)
    return image


def _run_tiles(network: Any, steps: Callable[[Any, Tensor], Steps], image: Tensor, tile: int, pad: int, grow: int,
               shrink: int, on_progress: OnProgress | None) -> Tensor:
    """Cut, run all tiles from one GroupNorm to the next, join."""
    height, width = image.shape[-2:]
    places = list(product(axis_tiles(height, tile, pad), axis_tiles(width, tile, pad)))
    running = [steps(network, image[..., slice(*rows.read), slice(*columns.read)]) for rows, columns in places]
    results = _synchronized(running, on_progress, sum(isinstance(module, nn.GroupNorm) for module in network.modules()))
    joined = results[0].new_empty((*results[0].shape[:2], height * grow // shrink, width * grow // shrink))
    for (rows, columns), result in zip(places, results, strict=True):
        (top, top_from), (left, left_from) = ((tuple(side * grow // shrink for side in axis.kept),
                                               axis.read[0] * grow // shrink) for axis in (rows, columns))
        joined[..., slice(*top), slice(*left)] = result[
            ..., top[0] - top_from:top[1] - top_from, left[0] - left_from:left[1] - left_from]
    return joined


def _synchronized(running: Sequence[Steps], on_progress: OnProgress | None, total: int) -> list[Tensor]:
    """Advance all tiles from norm to norm; each norm sees all tiles' statistics."""
    requests = [next(tile) for tile in running]
    for done in range(total):
        norm = requests[0][0]
        inputs = [features for _, features in requests]
        mean, variance = shared_statistics(inputs, norm.num_groups)
        requests, results = [], []
        for number, tile in enumerate(running):
            try:
                requests.append(tile.send(_normalized(norm, inputs[number], mean, variance)))
            except StopIteration as finished:
                results.append(finished.value)
            inputs[number] = torch.empty(0)
        if on_progress is not None:
            on_progress(done + 1, total)
        if results:
            return results
    raise RuntimeError("the network has more normalizations than modules; one of them is used twice")


def shared_statistics(tiles: Sequence[Tensor], groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each group, (B, groups) float32: averages of the tiles', weighted by their pixels.

    The variance of the tiles' means is left out, as in the published code.
    """
    pixels = [tile.shape[-2] * tile.shape[-1] for tile in tiles]
    means, variances = [], []
    for tile in tiles:
        variance, mean = torch.var_mean(tile.float().reshape(tile.shape[0], groups, -1), dim=2, correction=0)
        means.append(mean)
        variances.append(variance)
    weights = torch.tensor(pixels, dtype=torch.float32, device=tiles[0].device)[:, None, None] / sum(pixels)
    return (torch.stack(means) * weights).sum(0), (torch.stack(variances) * weights).sum(0)


def _normalized(norm: nn.GroupNorm, features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    grouped = features.float().reshape(*mean.shape, -1)
    grouped = (grouped - mean[..., None]) * torch.rsqrt(variance[..., None] + norm.eps)
    result = grouped.reshape(features.shape)
    if norm.affine:
        result = result * norm.weight.float()[:, None, None] + norm.bias.float()[:, None, None]
    return result.to(features.dtype)


def _encoder_steps(encoder: Any, image: Tensor) -> Steps:
    features = encoder.conv_in(image)
    for block in encoder.down_blocks:
        features = yield from _resnets(block.resnets, features)
        for downsampler in block.downsamplers or ():
            features = downsampler(features)
    features = yield from _middle(encoder.mid_block, features)
    return (yield from _end(encoder, features))


def _decoder_steps(decoder: Any, latent: Tensor) -> Steps:
    features = decoder.conv_in(latent)
    features = yield from _middle(decoder.mid_block, features)
    for block in decoder.up_blocks:
        features = yield from _resnets(block.resnets, features)
        for upsampler in block.upsamplers or ():
            features = upsampler(features)
    return (yield from _end(decoder, features))


def _end(network: Any, features: Tensor) -> Steps:
    features = yield network.conv_norm_out, features
    result: Tensor = network.conv_out(network.conv_act(features))
    return result


def _resnets(resnets: Sequence[Any], features: Tensor) -> Steps:
    for resnet in resnets:
        features = yield from _resnet(resnet, features)
    return features


def _resnet(resnet: Any, features: Tensor) -> Steps:
    inner = yield resnet.norm1, features
    inner = resnet.conv1(resnet.nonlinearity(inner))
    inner = yield resnet.norm2, inner
    inner = resnet.conv2(resnet.dropout(resnet.nonlinearity(inner)))
    shortcut = features if resnet.conv_shortcut is None else resnet.conv_shortcut(features)
    result: Tensor = (shortcut + inner) / resnet.output_scale_factor
    return result


def _middle(block: Any, features: Tensor) -> Steps:
    features = yield from _resnet(block.resnets[0], features)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            features = yield from _attention(attention, features)
        features = yield from _resnet(resnet, features)
    return features


def _attention(attention: Any, features: Tensor) -> Steps:
    """Self-attention within a tile."""
    batch, channels, height, width = features.shape
    normalized = yield attention.group_norm, features
    tokens = normalized.flatten(2).transpose(1, 2)
    query, key, value = (layer(tokens).unflatten(2, (attention.heads, -1)).transpose(1, 2)
                         for layer in (attention.to_q, attention.to_k, attention.to_v))
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    for layer in attention.to_out:
        mixed = layer(mixed)
    inner = mixed.transpose(1, 2).reshape(batch, channels, height, width)
    result: Tensor = (inner + features) / attention.rescale_output_factor
    return result
