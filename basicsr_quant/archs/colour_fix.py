"""Giving a diffusion model's output the colours of its input.

Source: OSEDiff (after StableSR), PassionSR specification 1.6.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from basicsr_quant.errors import UserError

ColourFix = Literal["adain", "wavelet", "nofix"]

_LEVELS = 5
_EPSILON = 1e-5


def truncated_to_8bit(image: Tensor) -> Tensor:
    """Return floor(255 v) of values clamped to [0, 1], as uint8; nothing is rounded."""
    return image.clamp(0, 1).mul(255).to(torch.uint8)


def adain(target: Tensor, reference: Tensor) -> Tensor:
    """Give every channel of ``target`` the mean and standard deviation of that of ``reference``.

    Args:
        target: (B, C, H, W).
        reference: (B, C, H', W').

    Returns:
        (B, C, H, W), not clamped.
    """
    (mean, deviation), (wanted_mean, wanted_deviation) = _statistics(target), _statistics(reference)
    return (target - mean) / deviation * wanted_deviation + wanted_mean


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(image, dim=(2, 3), keepdim=True)
    return mean, (variance + _EPSILON).sqrt()


def low_frequencies(image: Tensor) -> Tensor:
    """Return what is left of (B, C, H, W) after five binomial blurs with dilations 1, 2, 4, 8, 16."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    channels = image.shape[1]
    kernel = (row[:, None] * row).expand(channels, 1, 3, 3)
    for level in range(_LEVELS):
        radius = 2**level
        padded = functional.pad(image, [radius] * 4, mode="replicate")
        image = functional.conv2d(padded, kernel, dilation=radius, groups=channels)
    return image


def wavelet(target: Tensor, reference: Tensor) -> Tensor:
    """Replace the low frequencies of ``target`` by those of ``reference``, both (B, C, H, W); not clamped."""
    return target - low_frequencies(target) + low_frequencies(reference)


def fix_colours(target: Tensor, reference: Tensor, method: ColourFix) -> Tensor:
    """Correct an 8-bit image by another one.

    Args:
        target: (B, 3, H, W) uint8, the network's output.
        reference: (B, 3, H, W) uint8, the enlarged input.
        method: ``adain``, ``wavelet`` or ``nofix``, which returns ``target``.

    Returns:
        (B, 3, H, W) uint8, truncated.

    Raises:
        UserError: Unknown method, or images of different sizes.
    """
    if method == "nofix":
        return target
    if method not in ("adain", "wavelet"):
        raise UserError(f"unknown colour fix '{method}'; choose adain, wavelet or nofix")
    if target.shape != reference.shape:
        raise UserError(f"colour fix: the output is {tuple(target.shape)}, its reference {tuple(reference.shape)}; "
                        "both must have one size")
    change = adain if method == "adain" else wavelet
    return truncated_to_8bit(change(target.float() / 255, reference.float() / 255))
