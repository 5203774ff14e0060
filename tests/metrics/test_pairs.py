"""The two ways to cut a pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from basicsr_quant.errors import UserError
from basicsr_quant.metrics.pairs import crop_pair


@given(height=st.integers(1, 30), width=st.integers(1, 30), number=st.integers(0, 8))
def test_sizes(height: int, width: int, number: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    if min(height, width) > 2 * number:
        assert crop_pair(image, image, number)[1].shape == (height - 2 * number, width - 2 * number, 3)
    if min(height, width) >= max(number, 1):
        rows, columns, _ = crop_pair(image, image, number, "multiple")[0].shape
        assert rows % max(number, 1) == columns % max(number, 1) == 0
        assert 0 <= height - rows < max(number, 1) and 0 <= width - columns < max(number, 1)


def test_multiple_cuts_bottom_and_right() -> None:
    image = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    np.testing.assert_array_equal(crop_pair(image, image, 4, "multiple")[0], image[:4, :8])


def test_unknown_crop_and_too_small() -> None:
    image = np.zeros((3, 9, 3), np.uint8)
    with pytest.raises(UserError, match="'round' is unknown"):
        crop_pair(image, image, 1, "round")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="leaves nothing"):
        crop_pair(image, image, 4, "multiple")
