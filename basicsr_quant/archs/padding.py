"""Padding at the bottom and right by mirrored content, and cropping it off again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pad_to_multiple(image: Tensor, multiple: int, minimum: int = 0) -> Tensor:
    """Grow an image to sides that are multiples of ``multiple``.

    The image and its mirror image are joined and cut to size, so the border pixel appears twice. An image smaller than
    the padding is mirrored again and again.

    Args:
        image: (B, C, h, w).
        multiple: Positive; 1 leaves everything as it is.
        minimum: Smallest side to return.

    Returns:
        (B, C, h', w'); the input itself if nothing is missing.

    Source: 2DQuant's evaluation (flip, concatenate, crop).
    """
    for dimension in (2, 3):
        size = image.shape[dimension]
        target = max(size, minimum)
        target += -target % multiple
        if target == size:
            continue
        parts, length = [image], size
        while length < target:
            parts.append(image.flip(dimension) if len(parts) % 2 else image)
            length += size
        image = torch.cat(parts, dimension).narrow(dimension, 0, target)
    return image


def crop_to(image: Tensor, height: int, width: int) -> Tensor:
    """Return the top left (B, C, height, width) of an image, as a view."""
    return image[..., :height, :width]


def run_padded(
    network: Callable[[Tensor], Tensor], image: Tensor, scale: int, multiple: int = 1, minimum: int = 0
) -> Tensor:
    """Pad, run the network, crop what belongs to the padding.

    Args:
        network: (B, C, h, w) -> (B, C, scale * h, scale * w).
        image: (B, C, h, w) of any size.
        scale: Factor of the network.
        multiple: What the network's input sides must be multiples of (its ``window_multiple``).
        minimum: The smallest input side the network accepts (its ``minimum_size``).

    Returns:
        (B, C, scale * h, scale * w).
    """
    height, width = image.shape[-2:]
    return crop_to(network(pad_to_multiple(image, multiple, minimum)), scale * height, scale * width)
