"""MATLAB's ``imresize(image, scale)`` for 8-bit images: cubic with a = -0.5, antialiased when it shrinks."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from basicsr_quant.io.images import Image

KERNEL_WIDTH = 4.0
LARGEST_DENOMINATOR = 1000


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic convolution kernel with a = -0.5 (Keys 1981, eq. 15), zero outside of [-2, 2]."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))


def contributions(length: int, target: int, scale: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return what each output pixel of one axis takes from which input pixels.

    Borders are mirrored with the edge pixel repeated. When ``scale`` < 1 the kernel is stretched by 1/scale.

    Args:
        length: Input pixels.
        target: Output pixels.
        scale: Output pixels per input pixel.

    Returns:
        Weights (target, taps), each row with the sum 1, and input positions (target, taps) counted from 0.
    """
    stretch = min(scale, 1.0)
    width = KERNEL_WIDTH / stretch
    centre = np.arange(1, target + 1) / scale + 0.5 * (1 - 1 / scale)
    positions = np.floor(centre - width / 2)[:, None] + np.arange(math.ceil(width) + 2)[None, :]
    weights = stretch * cubic(stretch * (centre[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = (positions.astype(np.int64) - 1) % (2 * length)
    mirrored = np.where(mirrored < length, mirrored, 2 * length - 1 - mirrored)
    used = (weights != 0).any(axis=0)
    return weights[:, used], mirrored[:, used]


def _resize_rows(image: Image, target: int, scale: float) -> Image:
    """Resize the first axis; the result is rounded half up and clipped to 8 bits."""
    weights, positions = contributions(image.shape[0], target, scale)
    values = image.astype(np.float64)
    result = np.zeros((target, *image.shape[1:]))
    tail = (1,) * (image.ndim - 1)
    for tap in range(weights.shape[1]):
        result += weights[:, tap].reshape(-1, *tail) * values[positions[:, tap]]
    return np.clip(np.floor(result + 0.5), 0, 255).astype(np.uint8)


def imresize(image: Image, scale: float | Fraction) -> Image:
    """Resize an 8-bit image as MATLAB does: the vertical axis first, rounded to 8 bits, then the horizontal one.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        scale: Output pixels per input pixel, above 0; the output has ceil(scale * H) rows.

    Returns:
        uint8 (ceil(scale * H), ceil(scale * W)) or the same with 3 channels.

    Raises:
        ValueError: The image is empty or not 8-bit, or the scale is not positive.
    """
    ratio = Fraction(scale).limit_denominator(LARGEST_DENOMINATOR)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0 or ratio <= 0:
        raise ValueError(f"imresize takes uint8 (H, W) or (H, W, 3) and a scale above 0, not {image.dtype} "
                         f"{image.shape} and {scale}")
    height, width = (math.ceil(ratio * side) for side in image.shape[:2])
    rows = _resize_rows(image, height, float(scale))
    return np.ascontiguousarray(_resize_rows(rows.swapaxes(0, 1), width, float(scale)).swapaxes(0, 1))


def crop_to_multiple(image: Image, scale: int) -> Image:
    """Cut pixels off the bottom and right until both sides are multiples of ``scale``."""
    return image[:image.shape[0] // scale * scale, :image.shape[1] // scale * scale]


def downscale(image: Image, scale: int) -> Image:
    """Make the LR image of an HR image: crop to a multiple of ``scale``, then shrink ``scale`` times.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        scale: HR pixels per LR pixel.

    Raises:
        ValueError: The image is smaller than one LR pixel.
    """
    return imresize(crop_to_multiple(image, scale), 1 / scale)
