"""Binary convolutions as the released code of BI-DiffSR runs them, for comparison only.

Written from the specification (2.1, 2.2): every call makes the weight binary again, and builds the functions whose
gradients take the place of those of the signs, masks and all, though nobody asks for a gradient.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.deploy.freeze import replace_module
from basicsr_quant.quant.binary.conv2d import BinaryConv2d, binary_layers


class ReleasedBinaryConv2d(nn.Module):
    """sign(x) convolved with the scaled signs of the weight.

    Args:
        layer: Whose weight and padding to take.
    """

    def __init__(self, layer: BinaryConv2d) -> None:
        super().__init__()
        self.weight, self.padding = layer.weight, layer.padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        return functional.conv2d(_signs(x), _scaled_signs(self.weight), padding=self.padding)


def with_released_convolutions(network: nn.Module) -> nn.Module:
    """Return a copy of a network in which every binary convolution is a :class:`ReleasedBinaryConv2d`."""
    network = copy.deepcopy(network)
    for name, layer in list(binary_layers(network)):
        replace_module(network, name, ReleasedBinaryConv2d(layer))
    return network


def _signs(x: torch.Tensor) -> torch.Tensor:
    """Return sign(x), plus and minus a piecewise quadratic that approximates it."""
    below, negative, small = ((x < limit).float() for limit in (-1, 0, 1))
    left = -1 * below + (x * x + 2 * x) * (1 - below)
    middle = left * negative + (-x * x + 2 * x) * (1 - negative)
    smooth = middle * small + (1 - small)
    return torch.sign(x) - smooth + smooth


def _scaled_signs(weight: torch.Tensor) -> torch.Tensor:
    """Return the signs times the mean magnitude of their output channel, plus and minus the clipped weight."""
    clipped = weight.clamp(-1, 1)
    return weight.abs().mean((1, 2, 3), keepdim=True) * torch.sign(weight) - clipped + clipped
