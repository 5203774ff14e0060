"""OSEDiff's formulas against its published logs."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from basicsr_quant.errors import UserError
from basicsr_quant.io.images import read_image
from basicsr_quant.metrics.osediff import calculate_osediff_psnr, calculate_osediff_ssim


@pytest.mark.parametrize("benchmark", ["realsr", "drealsr"])
def test_published_logs(fixtures: Path, data_root: Path, benchmark: str) -> None:
    folder = data_root / benchmark
    if not (folder / "osediff_results").is_dir():
        pytest.skip(f"no {benchmark} results in SR_DATA_ROOT")
    with open(fixtures / "metrics" / f"osediff_{benchmark}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    for row in rows:
        sr, gt = (read_image(folder / kind / row["image"]) for kind in ("osediff_results", "HR"))
        assert calculate_osediff_psnr(sr, gt) == pytest.approx(float(row["psnr"]), abs=1e-5), row["image"]
        assert calculate_osediff_ssim(sr, gt) == pytest.approx(float(row["ssim"]), abs=2e-6), row["image"]


def test_identical_images() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert calculate_osediff_psnr(image, image) == pytest.approx(80)
    assert calculate_osediff_ssim(image, image) == pytest.approx(1)


def test_formula_by_hand() -> None:
    black, grey = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 51, np.uint8)
    step = 0.2 * 219 / 255
    assert calculate_osediff_psnr(black, grey) == pytest.approx(-10 * math.log10(step**2 + 1e-8), abs=1e-9)
    first, second, c1 = 16.0, 60.0, 6.5025
    assert calculate_osediff_ssim(black, grey) == pytest.approx(
        (2 * first * second + c1) / (first**2 + second**2 + c1), abs=1e-9)


def test_contrast_is_clipped() -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8)[:, None], (32, 1, 3)).reshape(32, 32, 3)
    assert calculate_osediff_ssim(ramp, 255 - ramp) >= 0


def test_sizes_must_agree() -> None:
    image = np.zeros((12, 12, 3), np.uint8)
    for metric in (calculate_osediff_psnr, calculate_osediff_ssim):
        with pytest.raises(UserError, match="one size"):
            metric(image[1:], image)
