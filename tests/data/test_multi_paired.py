"""Conditions of HR size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from basicsr_quant.data.multi_paired import MultiPairedImageDataset, enlarge, enlarge_region
from basicsr_quant.data.paired import PairedImageDataset, collate
from basicsr_quant.data.sampler import SampleIndex
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import read_image, write_image

MakePairs = Callable[..., tuple[Path, Path]]


def opened(folders: tuple[Path | None, Path], **options: Any) -> MultiPairedImageDataset:
    gt, lq = folders
    named = {"dataroot_gt": gt, "dataroot_lq": lq, "scale": 2, "key": "val", "filename_tmpl": "{}x2"}
    return MultiPairedImageDataset(**named | options)


def _expected(path: Path, scale: int = 2) -> torch.Tensor:
    image = read_image(path).astype(np.float32) / 255
    enlarged = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return torch.from_numpy(enlarged.transpose(2, 0, 1).copy())


def test_whole_images_are_enlarged(make_pairs: MakePairs) -> None:
    folders = make_pairs(3)
    dataset = opened(folders)
    for number in range(3):
        sample = dataset[number]
        assert sample["lq"].shape == sample["gt"].shape == (3, 26, 34) and sample["lq"].dtype == torch.float32
        torch.testing.assert_close(sample["lq"], _expected(folders[1] / f"im{number}x2.png"), rtol=0, atol=1e-6)
        assert torch.equal(sample["gt"], PairedImageDataset.__getitem__(dataset, number)["gt"])
    assert collate([dataset[0], dataset[1]])["lq"].shape == (2, 3, 26, 34)


def test_overshoots_are_not_clipped(tmp_path: Path) -> None:
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, 4:] = 255
    write_image(tmp_path / "edge.png", image)
    enlarged = opened((None, tmp_path), filename_tmpl="{}")[0]["lq"]
    assert enlarged.min() < -0.01 and enlarged.max() > 1.01
    torch.testing.assert_close(enlarged, _expected(tmp_path / "edge.png"), rtol=0, atol=1e-6)


def test_kernel_of_the_enlargement() -> None:
    point = np.zeros((9, 9, 3), np.uint8)
    point[4, 4] = 200
    row = enlarge(point, 2)[8, :, 0].astype(np.float64)

    def cubic(x: float, a: float = -0.75) -> float:
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    weights = [cubic((position + 0.5) / 2 - 0.5 - 4) for position in range(18)]
    np.testing.assert_allclose(row, 200 * cubic(0.25) * np.array(weights), atol=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_region_is_cut_out_of_the_whole(scale: int) -> None:
    random = np.random.default_rng(scale)
    image = random.integers(0, 256, (15, 22, 3), dtype=np.uint8)
    whole = enlarge(image, scale)
    assert whole.shape == (15 * scale, 22 * scale, 3)
    for _ in range(50):
        height, width = int(random.integers(1, 10 * scale)), int(random.integers(1, 10 * scale))
        top, left = int(random.integers(15 * scale - height + 1)), int(random.integers(22 * scale - width + 1))
        region = enlarge_region(image, scale, top, left, height, width)
        np.testing.assert_allclose(region, whole[top:top + height, left:left + width], rtol=0, atol=1e-3)


def test_patches_are_the_same_region_at_any_hr_position(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(2, size=(24, 30))
    dataset = opened((gt, lq), gt_size=8, seed=4, use_hflip=False, use_rot=False)
    whole = [dataset[0], dataset[1]]
    parities = set()
    for number in range(30):
        item = number % 2
        sample = dataset[SampleIndex(item, 7, number)]
        assert sample["lq"].shape == sample["gt"].shape == (3, 8, 8)
        windows = whole[item]["gt"].unfold(1, 8, 1).unfold(2, 8, 1)
        matches = (windows == sample["gt"][:, None, None]).all(dim=(0, 3, 4)).nonzero().tolist()  # type: ignore[call-overload]
        assert len(matches) == 1
        top, left = matches[0]
        torch.testing.assert_close(sample["lq"], whole[item]["lq"][:, top:top + 8, left:left + 8], rtol=0, atol=1e-5)
        parities.add((top % 2, left % 2))
    assert len(parities) == 4


def test_augmentation_is_joint_and_draws_depend_on_the_sample_alone(make_pairs: MakePairs) -> None:
    folders = make_pairs(1, size=(24, 30))
    plain = opened(folders, gt_size=8, use_hflip=False, use_rot=False)
    turned, without = opened(folders, gt_size=8), opened(folders, gt_size=8, read_gt=False, cache_bytes=0)
    seen = set()
    for number in range(20):
        index = SampleIndex(0, 3, number)
        before, after = plain[index], turned[index]
        assert torch.equal(without[index]["lq"], after["lq"]) and "gt" not in without[index]
        turns = [(name, turn) for name, turn in _TURNS.items() if torch.equal(turn(before["gt"]), after["gt"])]
        assert len(turns) == 1 and torch.equal(turns[0][1](before["lq"]), after["lq"])
        seen.add(turns[0][0])
    assert len(seen) > 3
    assert not torch.equal(turned[SampleIndex(0, 4, 0)]["lq"], turned[SampleIndex(0, 3, 0)]["lq"])


def _turn(image: torch.Tensor, turns: tuple[bool, ...]) -> torch.Tensor:
    hflip, vflip, transpose = turns
    image = image.flip(2) if hflip else image
    image = image.flip(1) if vflip else image
    return image.transpose(1, 2) if transpose else image


_TURNS: dict[tuple[bool, ...], Callable[[torch.Tensor], torch.Tensor]] = {
    turns: partial(_turn, turns=turns) for turns in product((False, True), repeat=3)}


def test_centre_crop_is_cut_after_enlarging(make_pairs: MakePairs) -> None:
    folders = make_pairs(1, size=(40, 48))
    whole, cut = opened(folders)[0], opened(folders, crop_size=16)[0]
    assert torch.equal(cut["gt"], whole["gt"][:, 12:28, 16:32])
    torch.testing.assert_close(cut["lq"], whole["lq"][:, 12:28, 16:32], rtol=0, atol=1e-5)
    assert opened(folders, crop_size=44)[0]["lq"].shape == (3, 40, 44)


def test_lr_alone_and_errors(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(1)
    sample = opened((None, lq), filename_tmpl="{}")[0]
    assert sample["lq"].shape == (3, 26, 34) and "gt" not in sample
    with pytest.raises(UserError, match="datasets:val:gt_size is missing"):
        opened((gt, lq))[SampleIndex(0, 0, 0)]
    with pytest.raises(UserError, match="larger than"):
        opened((gt, lq), gt_size=28)
