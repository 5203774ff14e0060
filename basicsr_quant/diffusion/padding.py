"""Padding at the bottom and right by reflection, as BI-DiffSR's sampling does it."""

from __future__ import annotations

import torch
from torch import Tensor


def reflected_positions(length: int, target: int, device: torch.device | None = None) -> Tensor:
    """Return which of ``length`` positions each of ``target`` takes, int64 (target,).

    Positions run to and fro, the border once at each turn, so that a target of any length is served.
    """
    period = max(2 * (length - 1), 1)
    places = torch.arange(target, device=device) % period
    return torch.minimum(places, period - places) if length > 1 else places


def reflect_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Grow an image to sides that are multiples of ``multiple``; the border pixel is not repeated.

    It equals ``torch.nn.functional.pad(mode="reflect")`` where that is defined, and goes on to and fro where an image
    is smaller than its padding.

    Args:
        image: (B, C, H, W), not empty.
        multiple: Positive; 1 leaves everything as it is.

    Returns:
        (B, C, H', W'); the input itself if nothing is missing.

    Source: BI-DiffSR specification 3.4.
    """
    for dimension in (2, 3):
        size = image.shape[dimension]
        if size % multiple:
            positions = reflected_positions(size, size + -size % multiple, image.device)
            image = image.index_select(dimension, positions)
    return image
