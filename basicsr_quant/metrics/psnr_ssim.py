"""PSNR and SSIM as BasicSR defines them, on 8-bit images."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr_quant.errors import UserError
from basicsr_quant.metrics.color import rgb_to_y
from basicsr_quant.metrics.pairs import Image, crop_pair

WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


def calculate_psnr(sr: Image, gt: Image, crop_border: int = 0, test_y_channel: bool = False) -> float:
    """Return the peak signal-to-noise ratio in dB: 20 log10(255 / sqrt(MSE)).

    Args:
        sr: (H, W, 3), uint8, RGB.
        gt: Of the same shape.
        crop_border: Pixels cut on each side of both.
        test_y_channel: Compare the unrounded luma instead of the three channels.

    Returns:
        Decibels; infinity for identical images.

    Raises:
        UserError: The sizes differ, an image is not uint8 RGB, or the crop leaves nothing.

    Source: BasicSR's measurement, as 2DQuant and BI-DiffSR report it.
    """
    first, second = _planes(sr, gt, crop_border, test_y_channel)
    error = float(np.mean((first - second) ** 2))
    return math.inf if error == 0 else 20 * math.log10(255 / math.sqrt(error))


def calculate_ssim(sr: Image, gt: Image, crop_border: int = 0, test_y_channel: bool = False) -> float:
    """Return the structural similarity: 11x11 Gaussian window of sigma 1.5, valid region, in fp64.

    Args:
        sr: (H, W, 3), uint8, RGB.
        gt: Of the same shape.
        crop_border: Pixels cut on each side of both.
        test_y_channel: Compare the unrounded luma; otherwise the mean over the three channels is returned.

    Returns:
        At most 1, which identical images have.

    Raises:
        UserError: The sizes differ, an image is not uint8 RGB, or less than 11x11 pixels are left after the crop.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13, with
        C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2.
    """
    first, second = _planes(sr, gt, crop_border, test_y_channel)
    return float(np.mean([ssim_plane(first[..., i], second[..., i]) for i in range(first.shape[2])]))


def ssim_plane(first: NDArray[np.float64], second: NDArray[np.float64], clip_contrast: bool = False) -> float:
    """Return the SSIM of two single-channel images.

    Args:
        first: (H, W), 0 to 255, at least 11x11.
        second: Of the same shape.
        clip_contrast: Raise negative values of the contrast-structure term to 0 before multiplying with the luminance
            term, as OSEDiff's measurement does.

    Raises:
        UserError: The images are smaller than the window.
    """
    height, width = first.shape
    if min(height, width) < WINDOW:
        raise UserError(f"SSIM needs {WINDOW}x{WINDOW} pixels, but {width}x{height} are left; lower crop_border")
    mean_first, mean_second = _blur(first), _blur(second)
    variance_first = _blur(first * first) - mean_first**2
    variance_second = _blur(second * second) - mean_second**2
    covariance = _blur(first * second) - mean_first * mean_second
    luminance = (2 * mean_first * mean_second + _C1) / (mean_first**2 + mean_second**2 + _C1)
    contrast = (2 * covariance + _C2) / (variance_first + variance_second + _C2)
    if clip_contrast:
        contrast = np.maximum(contrast, 0)
    return float(np.mean(luminance * contrast))


def _planes(
    sr: Image, gt: Image, crop_border: int, test_y_channel: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = crop_pair(sr, gt, crop_border)
    if test_y_channel:
        return rgb_to_y(first).astype(np.float64)[..., None], rgb_to_y(second).astype(np.float64)[..., None]
    return first.astype(np.float64), second.astype(np.float64)


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    offsets = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel /= kernel.sum()
    edge = WINDOW // 2
    blurred = cv2.sepFilter2D(np.ascontiguousarray(image), cv2.CV_64F, kernel, kernel)
    return np.asarray(blurred, dtype=np.float64)[edge:-edge, edge:-edge]
