"""A start for VAEs that are trained from scratch in minutes: at first they shrink and enlarge the image, linearly.

Colours run through the channels in both signs beside two constant channels, so that normalization and activation at the
ends of encoder and decoder pass them on; residual branches begin at zero. What the free channels hold is random.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

COLOURS = 3
CARRIED = 8
_CONSTANT = 2.0


@torch.no_grad()
def start_as_resampling(vae: Any) -> None:
    """Set weights of diffusers' ``AutoencoderKL`` so that it decodes its input, shrunk by averaging.

    Its normalization groups must hold at least 8 channels and the latent at least 3.

    Args:
        vae: With random weights; changed in place.
    """
    for module in vae.modules():
        if type(module).__name__ == "ResnetBlock2D":
            _zero(module.conv2)
            if module.conv_shortcut is not None:
                _carry(module.conv_shortcut)
        elif type(module).__name__ == "Attention":
            _zero(module.to_out[0])
    for block in vae.encoder.down_blocks:
        for layer in block.downsamplers or ():
            _carry(layer.conv, averaged=True)
    for block in vae.decoder.up_blocks:
        for layer in block.upsamplers or ():
            _carry(layer.conv)
    for network in (vae.encoder, vae.decoder):
        _split_signs(network.conv_in)
        _join_signs(network.conv_out, network.conv_norm_out)
    for layer in (vae.quant_conv, vae.post_quant_conv):
        _carry(layer, COLOURS)


def _zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _clear(layer: Any, outputs: slice) -> tuple[int, int]:
    layer.weight[outputs] = 0
    layer.bias[outputs] = 0
    height, width = layer.weight.shape[-2:]
    return height // 2, width // 2


def _carry(layer: Any, channels: int = CARRIED, averaged: bool = False) -> None:
    """Let the first channels through, a downsampler's as means of 2x2 pixels."""
    y, x = _clear(layer, slice(channels))
    for channel in range(channels):
        if averaged:
            layer.weight[channel, channel, :2, :2] = 0.25
        else:
            layer.weight[channel, channel, y, x] = 1


def _split_signs(layer: Any) -> None:
    """Copy colours to channels 0 to 2 and, negated, 3 to 5; channels 6 and 7 are constant."""
    y, x = _clear(layer, slice(CARRIED))
    for colour in range(COLOURS):
        layer.weight[colour, colour, y, x] = 1
        layer.weight[COLOURS + colour, colour, y, x] = -1
    layer.bias[6], layer.bias[7] = _CONSTANT, -_CONSTANT


def _join_signs(layer: Any, norm: nn.GroupNorm) -> None:
    """Return colours from what normalization and SiLU made of them: silu(v) - silu(-v) = v."""
    y, x = _clear(layer, slice(COLOURS))
    gain = _CONSTANT * (2 * norm.num_groups / norm.num_channels) ** 0.5
    for colour in range(COLOURS):
        layer.weight[colour, colour, y, x] = gain
        layer.weight[colour, COLOURS + colour, y, x] = -gain
