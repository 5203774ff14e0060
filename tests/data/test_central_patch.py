"""Patches that are always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from basicsr_quant.data.central_patch import CentralPatchDataset
from basicsr_quant.data.sampler import SampleIndex
from basicsr_quant.io.images import write_image


@pytest.fixture
def dataset(tmp_path: Path) -> CentralPatchDataset:
    generator = np.random.default_rng(0)
    for number in range(5):
        for kind, side in (("hr", 24), ("lr", 12)):
            image = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            write_image(tmp_path / kind / f"{number}_{kind}.png", image)
    return CentralPatchDataset(dataroot_lq=tmp_path / "lr", dataroot_gt=tmp_path / "hr", scale=2, gt_size=8)


def test_the_centre_every_time(dataset: CentralPatchDataset) -> None:
    """HR and LR names of PassionSR's calibration folders differ in hr and lr."""
    assert [pair.lq for pair in dataset.pairs] == [f"{number}_lr" for number in range(5)]
    whole = dataset[2]
    for index in (SampleIndex(2, 0, 0), SampleIndex(2, 7, 3)):
        sample = dataset[index]
        assert torch.equal(sample["lq"], whole["lq"][:, 4:8, 4:8])
        assert torch.equal(sample["gt"], whole["gt"][:, 8:16, 8:16])


def test_some_of_the_images(dataset: CentralPatchDataset) -> None:
    some = dataset.subset(3)
    assert len(some) == 3 and len(dataset) == 5 and dataset.subset(9) is dataset
    assert [pair.name for pair in some.pairs] == [pair.name for pair in dataset.subset(3).pairs]
    assert sorted(pair.name for pair in some.pairs) == [pair.name for pair in some.pairs]
    assert torch.equal(some[SampleIndex(0, 0, 0)]["lq"],
                       dataset[SampleIndex(dataset.pairs.index(some.pairs[0]), 0, 0)]["lq"])
