"""The luma of 8-bit images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from basicsr_quant.metrics.color import bgr_to_y, rgb_to_y


def test_fixture_to_the_bit(fixtures: Path) -> None:
    recorded = load_file(fixtures / "2dquant" / "metrics.safetensors")
    bgr = recorded["sr_uint8_bgr_hwc"]
    np.testing.assert_array_equal(bgr_to_y(bgr), recorded["sr_y"][..., 0])
    np.testing.assert_array_equal(rgb_to_y(bgr[..., ::-1]), recorded["sr_y"][..., 0])


def test_every_corner_of_the_colour_cube() -> None:
    levels = np.array([0, 1, 17, 127, 128, 254, 255], np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    red, green, blue = np.moveaxis(cube.astype(np.float64), -1, 0)
    expected = (65.481 * red + 128.553 * green + 24.966 * blue) / 255 + 16
    result = rgb_to_y(cube)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=4e-5)
    assert result.min() == 16 and abs(result.max() - 235) < 1e-4
