"""Short names, directions, protocols."""

from __future__ import annotations

import numpy as np
import pytest

from basicsr_quant.errors import UserError
from basicsr_quant.metrics.names import NAMES, VERIFIED, named_metric
from basicsr_quant.metrics.osediff import calculate_osediff_psnr


def test_names_and_directions() -> None:
    assert {name: metric.better for name, metric in NAMES.items()} == {
        "psnr": "higher", "ssim": "higher", "lpips": "lower", "dists": "lower", "clipiqa": "higher", "niqe": "lower",
        "musiq": "higher", "maniqa": "higher",
    }
    assert {name for name, metric in NAMES.items() if metric.needs_reference} == {"psnr", "ssim", "lpips", "dists"}
    assert VERIFIED.keys() == NAMES.keys()


def test_protocols_differ() -> None:
    assert named_metric("psnr", "osediff").calculate is calculate_osediff_psnr
    assert named_metric("maniqa", "osediff").arguments == {"name": "maniqa-pipal"}
    assert named_metric("maniqa").arguments == {"name": "maniqa"}
    with pytest.raises(UserError, match=r"'psmr' is unknown \(did you mean 'psnr'"):
        named_metric("psmr")
    with pytest.raises(UserError, match="protocol 'set5'"):
        named_metric("psnr", "set5")  # type: ignore[arg-type]


def test_bind_passes_only_what_is_taken() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    other = image.copy()
    other[:2] ^= 1
    settings = {"crop_border": 2, "test_y_channel": True, "crop": "border", "weights": None, "device": "cpu"}
    assert named_metric("psnr").bind(settings)(other, image) == float("inf")
    assert named_metric("psnr", "osediff").bind(settings)(other, image) < 80
