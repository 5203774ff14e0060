"""The bicubic against published LR images, our fixture and exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from basicsr_quant.data.bicubic import contributions, downscale, imresize
from basicsr_quant.io.images import read_image


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5_is_identical(data_root: Path, scale: int) -> None:
    folder = data_root / "benchmark" / "Set5"
    names = sorted(path.stem for path in (folder / "HR").iterdir())
    assert len(names) == 5
    for name in names:
        published = read_image(folder / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png")
        assert np.array_equal(downscale(read_image(folder / "HR" / f"{name}.png"), scale), published), name


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_fixture_is_identical(fixtures: Path, scale: int) -> None:
    expected = read_image(fixtures / "data" / f"hrx{scale}.png")
    assert np.array_equal(downscale(read_image(fixtures / "data" / "hr.png"), scale), expected)


def test_enlarged_fixture_is_identical(fixtures: Path) -> None:
    expected = read_image(fixtures / "data" / "hrx4_up3.png")
    assert np.array_equal(imresize(read_image(fixtures / "data" / "hrx4.png"), 3), expected)


def kernel(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


def exact_column(values: list[int], scale: Fraction) -> list[Fraction]:
    """Return the resized column before rounding, in rational numbers, by the definition."""
    stretch = min(scale, Fraction(1))
    result = []
    for place in range(math.ceil(len(values) * scale)):
        centre = (place + Fraction(1, 2)) / scale - Fraction(1, 2)
        reach = math.ceil(2 / stretch) + 1
        weighted = total = Fraction(0)
        for position in range(math.floor(centre) - reach, math.floor(centre) + reach + 2):
            weight = kernel(stretch * (centre - position))
            folded = position % (2 * len(values))
            value = values[folded] if folded < len(values) else values[2 * len(values) - 1 - folded]
            weighted, total = weighted + weight * value, total + weight
        result.append(weighted / total)
    return result


RATIOS = [(1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1), (3, 2)]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=14), st.sampled_from(RATIOS))
@settings(max_examples=150, deadline=None)
def test_a_column_equals_exact_arithmetic(values: list[int], ratio: tuple[int, int]) -> None:
    scale = Fraction(*ratio)
    column = np.array(values, dtype=np.uint8).reshape(-1, 1)
    ours = imresize(np.repeat(column, ratio[1], axis=1), float(scale))
    expected = exact_column(values, scale)
    assert ours.shape[0] == len(expected) and (ours == ours[:, :1]).all()
    for value, exact in zip(ours[:, 0].tolist(), expected, strict=True):
        clipped = min(max(exact, Fraction(0)), Fraction(255))
        near_tie = abs(clipped % 1 - Fraction(1, 2)) < Fraction(1, 10**9)
        assert value == math.floor(clipped + Fraction(1, 2)) or (near_tie and abs(value - clipped) < 1)


@given(npst.arrays(np.uint8, st.tuples(st.integers(4, 13), st.integers(4, 13), st.just(3))), st.sampled_from([2, 3, 4]))
@settings(max_examples=40, deadline=None)
def test_channels_are_independent_and_pixels_beyond_the_multiple_do_not_count(image: np.ndarray, scale: int) -> None:
    small = downscale(image, scale)
    assert small.shape == (image.shape[0] // scale, image.shape[1] // scale, 3)
    assert np.array_equal(small, np.stack([downscale(image[:, :, channel], scale) for channel in range(3)], -1))
    changed = image.copy()
    changed[image.shape[0] // scale * scale:] ^= 255
    changed[:, image.shape[1] // scale * scale:] ^= 255
    assert np.array_equal(small, downscale(changed, scale))


@given(st.integers(0, 255), st.integers(1, 9), st.sampled_from([1 / 2, 1 / 3, 1 / 4, 2, 3, 4, 1.5]))
def test_constants_stay(value: int, side: int, scale: float) -> None:
    assert (imresize(np.full((side, side), value, np.uint8), scale) == value).all()


@given(st.integers(1, 600), st.sampled_from([2, 3, 4, 6, 8]))
@settings(max_examples=60, deadline=None)
def test_weights_sum_to_one(target: int, scale: int) -> None:
    weights, positions = contributions(target * scale, target, 1 / scale)
    assert np.allclose(weights.sum(1), 1, atol=1e-14) and positions.min() >= 0 and positions.max() < target * scale


@pytest.mark.parametrize(("image", "scale"), [
    (np.zeros((4, 4), np.float32), 2), (np.zeros((0, 4), np.uint8), 2), (np.zeros((4, 4), np.uint8), 0),
    (np.zeros((4,), np.uint8), 2),
])
def test_refusals(image: np.ndarray, scale: float) -> None:
    with pytest.raises(ValueError, match="imresize takes"):
        imresize(image, scale)
