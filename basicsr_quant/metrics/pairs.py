"""Checks and crops that every full-reference metric begins with."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from basicsr_quant.errors import UserError

Crop = Literal["border", "multiple"]
Image = NDArray[np.uint8]


def check_image(image: Image, what: str) -> None:
    """Raise a UserError unless ``image`` is (H, W, 3) uint8 and not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise UserError(f"the {what} image is {image.dtype} of shape {image.shape}; metrics take uint8 RGB (H, W, 3)")


def check_pair(sr: Image, gt: Image) -> None:
    """Raise a UserError unless both are (H, W, 3) uint8 images of one size."""
    check_image(sr, "SR")
    check_image(gt, "GT")
    if sr.shape != gt.shape:
        raise UserError(f"the SR image is {sr.shape[1]}x{sr.shape[0]} and the GT image {gt.shape[1]}x{gt.shape[0]} "
                        "(width x height); metrics compare images of one size, crop or resize one of them")


def crop_pair(sr: Image, gt: Image, crop_border: int, crop: Crop = "border") -> tuple[Image, Image]:
    """Check two images and cut both alike.

    Args:
        sr: (H, W, 3), uint8, RGB.
        gt: Of the same shape.
        crop_border: Pixels, not negative.
        crop: ``border`` cuts ``crop_border`` pixels on each side; ``multiple`` cuts the bottom and the right to a
            multiple of ``crop_border`` (0 cuts nothing).

    Returns:
        Both images, at least 1x1, as views.

    Raises:
        UserError: The images are not comparable, or nothing would be left.
    """
    check_pair(sr, gt)
    height, width = sr.shape[:2]
    if crop_border < 0:
        raise UserError(f"crop_border {crop_border} is negative; write the number of pixels to cut")
    if crop == "border":
        rows, columns = slice(crop_border, height - crop_border), slice(crop_border, width - crop_border)
        too_small = min(height, width) <= 2 * crop_border
    elif crop == "multiple":
        step = max(crop_border, 1)
        rows, columns = slice(0, height - height % step), slice(0, width - width % step)
        too_small = min(height, width) < step
    else:
        raise UserError(f"crop '{crop}' is unknown; write border or multiple")
    if too_small:
        raise UserError(f"crop_border {crop_border} ({crop}) leaves nothing of a {width}x{height} image; lower it")
    return sr[rows, columns], gt[rows, columns]
