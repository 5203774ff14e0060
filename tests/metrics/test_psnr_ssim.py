"""PSNR and SSIM against the recorded numbers and a float64 reference that loops over windows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from basicsr_quant.errors import UserError
from basicsr_quant.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr_quant.registry import METRICS


def noisy(image: NDArray[np.uint8], strength: float, seed: int = 1) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=image.shape) * strength
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


def random_image(seed: int, height: int = 20, width: int = 23) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(40, 216, (height, width, 3)).astype(np.uint8)


def luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def reference_ssim(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    position = np.arange(11) - 5
    window = np.exp(-(position[:, None] ** 2 + position**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            x, y = (image[top:top + 11, left:left + 11] for image in (first, second))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = 6.5025, 58.5225
            values.append((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
                          / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("border", [0, 2, 3, 4])
def test_fixture(fixtures: Path, border: int) -> None:
    recorded = load_file(fixtures / "2dquant" / "metrics.safetensors")
    sr, gt = (recorded[f"{name}_uint8_bgr_hwc"][..., ::-1] for name in ("sr", "gt"))
    assert calculate_psnr(sr, gt, border, True) == pytest.approx(recorded[f"psnr_y_crop{border}"][0], abs=1e-5)
    assert calculate_psnr(sr, gt, border) == pytest.approx(recorded[f"psnr_rgb_crop{border}"][0], abs=1e-9)
    assert calculate_ssim(sr, gt, border, True) == pytest.approx(recorded[f"ssim_y_crop{border}"][0], abs=1e-9)


@pytest.mark.parametrize("border", [0, 3])
def test_float64_reference(border: int) -> None:
    gt = random_image(0)
    sr = noisy(gt, 12)
    inner = (slice(border, gt.shape[0] - border), slice(border, gt.shape[1] - border))
    error = np.mean((luma(sr)[inner] - luma(gt)[inner]) ** 2)
    assert calculate_psnr(sr, gt, border, True) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-5)
    expected = reference_ssim(luma(sr)[inner], luma(gt)[inner])
    assert calculate_ssim(sr, gt, border, True) == pytest.approx(expected, abs=1e-6)
    channels = [reference_ssim(sr[inner][..., i].astype(float), gt[inner][..., i].astype(float)) for i in range(3)]
    assert calculate_ssim(sr, gt, border) == pytest.approx(float(np.mean(channels)), abs=1e-10)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), strength=st.floats(0.5, 30), y_channel=st.booleans(), border=st.integers(0, 4))
def test_symmetric_bounded_and_identity(seed: int, strength: float, y_channel: bool, border: int) -> None:
    gt = random_image(seed)
    sr = noisy(gt, strength, seed)
    assert calculate_psnr(sr, gt, border, y_channel) == calculate_psnr(gt, sr, border, y_channel)
    ssim = calculate_ssim(sr, gt, border, y_channel)
    assert ssim == pytest.approx(calculate_ssim(gt, sr, border, y_channel), abs=1e-12)
    assert -1 <= ssim <= 1
    assert calculate_psnr(gt, gt, border, y_channel) == math.inf
    assert calculate_ssim(gt, gt, border, y_channel) == pytest.approx(1, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), weak=st.floats(1, 8), y_channel=st.booleans())
def test_falls_with_noise(seed: int, weak: float, y_channel: bool) -> None:
    gt = random_image(seed, 32, 32)
    little, much = noisy(gt, weak, seed), noisy(gt, 3 * weak, seed)
    assert calculate_psnr(little, gt, 0, y_channel) > calculate_psnr(much, gt, 0, y_channel)
    assert calculate_ssim(little, gt, 0, y_channel) > calculate_ssim(much, gt, 0, y_channel)


@given(shift=st.integers(1, 100))
def test_psnr_of_a_constant_shift(shift: int) -> None:
    gt = np.full((12, 12, 3), 50, np.uint8)
    assert calculate_psnr(gt + np.uint8(shift), gt) == pytest.approx(20 * math.log10(255 / shift))


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim])
def test_bad_input(metric: Any) -> None:
    image = random_image(0)
    with pytest.raises(UserError, match="SR image is 22x20 and the GT image 23x20"):
        metric(image[:, 1:], image)
    with pytest.raises(UserError, match="leaves nothing of a 23x20 image"):
        metric(image, image, 10)
    with pytest.raises(UserError, match="negative"):
        metric(image, image, -1)
    with pytest.raises(UserError, match="float32"):
        metric(image.astype(np.float32), image)
    with pytest.raises(UserError, match="GT image is uint8 of shape"):
        metric(image, image[..., 0])


def test_ssim_needs_a_window() -> None:
    image = random_image(0)
    assert calculate_psnr(image, image, 5) == math.inf
    with pytest.raises(UserError, match="SSIM needs 11x11"):
        calculate_ssim(image, image, 5)


def test_registered() -> None:
    image = random_image(0)
    assert METRICS.build("calculate_psnr", image, image, crop_border=2, test_y_channel=True) == math.inf
    assert METRICS.build("calculate_ssim", image, image, crop_border=2, test_y_channel=True) == pytest.approx(1)
