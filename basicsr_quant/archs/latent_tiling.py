"""The UNet of a latent diffusion model on large latents: overlapping tiles, blended with Gaussian weights.

Source: OSEDiff and PassionSR, specification 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

_VARIANCE = 0.01


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along one axis; all are whole, the last ends with the axis.

    Args:
        size: Length of the axis, at least ``tile``.
        tile: Length of a tile.
        overlap: What neighbours share, less than ``tile``; the last two may share more.
    """
    stride = tile - overlap
    count = max(1, math.ceil((size - tile) / stride) + 1)
    return [min(number * stride, size - tile) for number in range(count)]


def gaussian_weights(tile: int) -> Tensor:
    """Return the weights of a tile, (tile, tile) float64, y first.

    The window is centred at (tile - 1) / 2 in x but at tile / 2 in y, half a pixel off, as in the published code.
    """
    place = torch.arange(tile, dtype=torch.float64)
    y, x = (torch.exp(-(place - centre) ** 2 / (2 * _VARIANCE * tile**2)) / math.sqrt(2 * math.pi * _VARIANCE)
            for centre in (tile / 2, (tile - 1) / 2))
    return y[:, None] * x


def tiled_prediction(network: Callable[[Tensor], Tensor], latent: Tensor, tile: int = 64, overlap: int = 32,
                     on_progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Run a network on a latent in overlapping tiles and return their weighted mean.

    A latent of no more than ``tile`` squared elements goes through in one piece. Otherwise no tile is longer than the
    shorter side of the latent; on a very narrow one the overlap is at most half a tile.

    Args:
        network: (B, C, t, t) -> the same shape, called on one tile at a time.
        latent: (B, C, h, w).
        tile: Side of a tile in latent pixels (OSEDiff 96, PassionSR 64).
        overlap: Latent pixels that neighbouring tiles share.
        on_progress: Called with (tiles done, tiles in all) after every tile.

    Returns:
        (B, C, h, w) in the network's dtype; sums are kept in float32 at least.

    Raises:
        ValueError: ``overlap`` is not in [0, tile).
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"latent tile overlap {overlap} is not in [0, {tile}), the tile size")
    height, width = latent.shape[-2:]
    if height * width <= tile * tile:
        result = network(latent)
        if on_progress is not None:
            on_progress(1, 1)
        return result
    if min(height, width) < tile:
        tile = min(height, width)
        overlap = min(overlap, tile // 2)
    weights = gaussian_weights(tile).to(latent.device)
    places = list(product(tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)))
    accumulator = torch.promote_types(latent.dtype, torch.float32)
    total = torch.zeros(latent.shape, dtype=accumulator, device=latent.device)
    weight_sum = torch.zeros((height, width), dtype=accumulator, device=latent.device)
    dtype = latent.dtype
    for number, (top, left) in enumerate(places, 1):
        window = (..., slice(top, top + tile), slice(left, left + tile))
        prediction = network(latent[window])
        dtype = prediction.dtype
        total[window] += (prediction * weights).to(accumulator)
        weight_sum[window] += weights.to(accumulator)
        if on_progress is not None:
            on_progress(number, len(places))
    return (total / weight_sum).to(dtype)
