"""Small image folders, made by the package itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from basicsr_quant.data.bicubic import downscale
from basicsr_quant.io.images import write_image

MakePairs = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make_pairs(tmp_path: Path) -> Iterator[MakePairs]:
    """Return a function that writes (HR, LR) folders of random images and returns their paths."""

    def make(count: int = 5, size: tuple[int, int] = (27, 34)) -> tuple[Path, Path]:
        random = np.random.default_rng(count)
        for number in range(count):
            image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            write_image(tmp_path / "HR" / f"im{number}.png", image)
            write_image(tmp_path / "LR" / f"im{number}x2.png", downscale(image, 2))
        return tmp_path / "HR", tmp_path / "LR"

    yield make
