"""Dropout whose mask is a function of one number per sample, on any device, in any batch, in any memory layout."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIER = 0x45D9F3B
LOW_32_BITS = 0xFFFFFFFF
SEEDS = 1 << 24


def _mix(number: Tensor) -> Tensor:
    """Scramble integers of 32 bits, held in int64 so that no product overflows."""
    for _ in range(2):
        number = (((number >> 16) ^ number) * MULTIPLIER) & LOW_32_BITS
    return (number >> 16) ^ number


def uniform_from_seeds(draws: Tensor, shape: torch.Size) -> Tensor:
    """Return uniform numbers in [0, 1) made from one draw per sample.

    Args:
        draws: (B,) in [0, 1), read to 24 bits.
        shape: Of the result for one sample.

    Returns:
        (B, *shape) float32, a function of the draw and of the position in ``shape`` alone.
    """
    place = torch.arange(shape.numel(), device=draws.device).view(shape)
    seed = (draws.float() * SEEDS).long().view(-1, *[1] * len(shape))
    mixed = _mix((_mix(place + 1) + _mix(seed + 1)) & LOW_32_BITS)
    return (mixed >> 8).float() / SEEDS


def seeded_dropout(x: Tensor, rate: float, draws: Tensor) -> Tensor:
    """Set elements to zero with probability ``rate`` and divide the others by 1 - ``rate``.

    Args:
        x: (B, C, H, W).
        rate: From 0 to below 1.
        draws: (B,) in [0, 1): the seed of every sample's mask.

    Returns:
        (B, C, H, W).
    """
    kept = uniform_from_seeds(draws, x.shape[1:]) >= rate
    return torch.where(kept, x / (1 - rate), 0.0)
