"""PSNR and SSIM as OSEDiff and PassionSR measure them; they differ from BasicSR's in the last digits.

Source: the formulas that reproduce OSEDiff's published per-image logs, to 9e-6 dB and 1.3e-6 in SSIM.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from basicsr_quant.metrics.pairs import Image, check_pair
from basicsr_quant.metrics.psnr_ssim import ssim_plane

_RGB_WEIGHTS = np.array([65.481, 128.553, 24.966])


def calculate_osediff_psnr(sr: Image, gt: Image) -> float:
    """Return 10 log10(1 / (MSE + 1e-8)) on the unrounded luma in [0, 1].

    Args:
        sr: (H, W, 3), uint8, RGB, whole image.
        gt: Of the same shape.

    Returns:
        Decibels, at most 80.

    Raises:
        UserError: The sizes differ, or an image is not uint8 RGB.
    """
    check_pair(sr, gt)
    return 10 * math.log10(1 / (float(np.mean((_luma(sr) - _luma(gt)) ** 2)) + 1e-8))


def calculate_osediff_ssim(sr: Image, gt: Image) -> float:
    """Return the SSIM of the luma rounded to 8 bits, its contrast-structure term clipped at 0.

    Args:
        sr: (H, W, 3), uint8, RGB, whole image, at least 11x11.
        gt: Of the same shape.

    Returns:
        0 to 1.

    Raises:
        UserError: The sizes differ, an image is not uint8 RGB or smaller than 11x11.
    """
    check_pair(sr, gt)
    return ssim_plane(np.round(255 * _luma(sr)), np.round(255 * _luma(gt)), clip_contrast=True)


def _luma(image: Image) -> NDArray[np.float64]:
    return (image.astype(np.float64) / 255 @ _RGB_WEIGHTS + 16) / 255
