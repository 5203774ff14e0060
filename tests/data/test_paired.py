"""Pairs: how they are found, checked, cut and augmented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from basicsr_quant.data.augment import augment, crop_pair, random_crop
from basicsr_quant.data.bicubic import downscale
from basicsr_quant.data.cache import ImageCache
from basicsr_quant.data.paired import PairedImageDataset, collate
from basicsr_quant.data.sampler import SampleIndex
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import encode_image, read_image, to_image, write_image

MakePairs = Callable[..., tuple[Path, Path]]


def opened(folders: tuple[Path, Path | None] | tuple[None, Path], **options: Any) -> PairedImageDataset:
    gt, lq = folders
    assert lq is not None
    named = {"dataroot_gt": gt, "dataroot_lq": lq, "scale": 2, "key": "val", "filename_tmpl": "{}x2"}
    return PairedImageDataset(**named | options)


def test_whole_images_in_sorted_order(make_pairs: MakePairs) -> None:
    folders = make_pairs(12)
    dataset = opened(folders)
    assert [pair.name for pair in dataset.pairs] == sorted(f"im{number}" for number in range(12))
    sample = dataset[2]
    assert sample["name"] == "im10"
    assert sample["lq_path"].endswith("im10x2.png") and sample["gt_path"].endswith("im10.png")
    assert sample["lq"].shape == (3, 13, 17) and sample["gt"].shape == (3, 26, 34)
    assert np.array_equal(to_image(sample["gt"]), read_image(folders[0] / "im10.png")[:26])


def test_another_suffix_is_no_other_name(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(2)
    image = read_image(gt / "im0.png")
    (gt / "im0.png").unlink()
    (gt / "im0.BMP").write_bytes(encode_image(image, ".bmp"))
    (gt / "notes.txt").write_text("not an image")
    assert len(opened((gt, lq))) == 2


def test_a_patch_is_the_same_region_of_both_images(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(3, size=(40, 48))
    for path in gt.iterdir():
        large = np.kron(read_image(lq / f"{path.stem}x2.png"), np.ones((2, 2, 1), np.uint8))
        write_image(path, large)
    dataset = opened((gt, lq), gt_size=16, seed=4)
    seen = set()
    for number in range(40):
        sample = dataset[SampleIndex(number % 3, 7, number)]
        assert sample["lq"].shape == (3, 8, 8) and (sample["iteration"], sample["sample"]) == (7, number)
        assert torch.equal(sample["gt"], sample["lq"].repeat_interleave(2, 1).repeat_interleave(2, 2))
        seen.add(sample["lq"].numpy().tobytes())
    assert len(seen) == 40


def test_draws_depend_on_seed_iteration_and_sample_alone(make_pairs: MakePairs) -> None:
    folders = make_pairs(2, size=(40, 48))
    first, second = opened(folders, gt_size=16), opened(folders, gt_size=16, read_gt=False, cache_bytes=0)
    indices = [SampleIndex(0, 3, 5), SampleIndex(0, 3, 6), SampleIndex(0, 4, 5)]
    patches = [first[index]["lq"] for index in indices]
    backwards = [second[index]["lq"] for index in reversed(indices)]
    assert all(torch.equal(one, other) for one, other in zip(patches, reversed(backwards), strict=True))
    assert not torch.equal(patches[0], patches[1]) and not torch.equal(patches[0], patches[2])
    assert not torch.equal(opened(folders, gt_size=16, seed=1)[indices[0]]["lq"], patches[0])


def test_hr_is_not_read_when_it_is_not_needed(make_pairs: MakePairs, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = opened(make_pairs(), read_gt=False, gt_size=8)
    decoded: list[str] = []
    from basicsr_quant.data import paired

    original = paired.decode_image
    monkeypatch.setattr(paired, "decode_image", lambda data, path, _: decoded.append(path) or original(data, path))
    assert "gt" not in dataset[0] and "gt" not in dataset[SampleIndex(1, 0, 0)]
    assert len(decoded) == 2 and not any("HR" in path for path in decoded)
    assert not dataset.has_gt and dataset.gt_path(0) is None


def test_lr_alone(make_pairs: MakePairs) -> None:
    _, lq = make_pairs(3)
    assert [pair.name for pair in opened((None, lq)).pairs] == ["im0", "im1", "im2"]
    dataset = opened((None, lq), filename_tmpl="{}")
    assert dataset[0]["name"] == "im0x2" and "gt" not in dataset[0]


def test_last_names(make_pairs: MakePairs) -> None:
    folders = make_pairs(5)
    assert [pair.name for pair in opened(folders, exclude_last=2).pairs] == ["im0", "im1", "im2"]
    assert [pair.name for pair in opened(folders, only_last=2).pairs] == ["im3", "im4"]
    for wrong, text in (({"exclude_last": 5}, "exclude_last: 5 of 5"), ({"only_last": 6}, "only_last: 6 of 5"),
                        ({"only_last": 1, "exclude_last": 1}, "both set")):
        with pytest.raises(UserError, match=f"datasets:val:?.*{text}"):
            opened(folders, **wrong)


def test_centre_crop(make_pairs: MakePairs) -> None:
    folders = make_pairs(1, size=(40, 48))
    whole, cut = opened(folders)[0], opened(folders, crop_size=16)[0]
    assert torch.equal(cut["lq"], whole["lq"][:, 6:14, 8:16]) and torch.equal(cut["gt"], whole["gt"][:, 12:28, 16:32])
    assert opened(folders, crop_size=44)[0]["lq"].shape == (3, 20, 22)
    with pytest.raises(UserError, match="datasets:val:crop_size: 15"):
        opened(folders, crop_size=15)


def test_missing_and_empty_folders(make_pairs: MakePairs, tmp_path: Path) -> None:
    gt, lq = make_pairs(1)
    with pytest.raises(UserError, match=r"datasets:val:dataroot_gt: folder '.*nowhere' does not exist"):
        opened((tmp_path / "nowhere", lq))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"datasets:val:dataroot_lq: folder '.*empty' holds no image"):
        opened((gt, tmp_path / "empty"))


def test_images_without_partner(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(3)
    (lq / "im1x2.png").rename(lq / "other.png")
    with pytest.raises(UserError, match=r"3 HR and 3 LR images; '.*im1\.png' has no LR partner 'im1x2'"):
        opened((gt, lq))
    (gt / "im1.png").unlink()
    with pytest.raises(UserError, match=r"2 HR and 3 LR images; '.*other\.png' has no HR partner"):
        opened((gt, lq))


def test_two_files_of_one_stem(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(1)
    write_image(gt / "im0.bmp", read_image(gt / "im0.png"))
    with pytest.raises(UserError, match=r"im0\.bmp' and '.*im0\.png' have the same stem"):
        opened((gt, lq))


@pytest.mark.parametrize("template", ["x2", "{}{}"])
def test_template_without_place_for_the_name(make_pairs: MakePairs, template: str) -> None:
    with pytest.raises(UserError, match="datasets:val:filename_tmpl"):
        opened(make_pairs(1), filename_tmpl=template)


def test_unequal_pair_names_both_files_and_sizes(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(2)
    write_image(lq / "im1x2.png", np.zeros((14, 17, 3), np.uint8))
    with pytest.raises(UserError, match=r"im1\.png' is 27x34 and LR '.*im1x2\.png' is 14x17"):
        opened((gt, lq))
    with pytest.raises(UserError, match=r"not 1/3 of it"):
        opened((gt, lq), scale=3)


def test_patch_larger_than_an_image(make_pairs: MakePairs) -> None:
    folders = make_pairs(2)
    assert opened(folders, gt_size=26).patch_size == 13
    with pytest.raises(UserError, match=r"patch of 14x14 LR pixels \(HR 28\) is larger than '.*im0x2\.png' \(13x17\)"):
        opened(folders, gt_size=28)
    with pytest.raises(UserError, match="datasets:val:gt_size: 25 is no positive multiple of the scale 2"):
        opened(folders, gt_size=25)
    with pytest.raises(UserError, match="datasets:val:gt_size is missing"):
        opened(folders)[SampleIndex(0, 0, 0)]


def test_an_image_that_is_replaced_meanwhile(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(1)
    dataset = opened((gt, lq))
    write_image(lq / "im0x2.png", np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(UserError, match=r"im0x2\.png' decodes to 5x5, not to 13x17"):
        dataset[0]


def test_collate(make_pairs: MakePairs) -> None:
    dataset = opened(make_pairs(3), gt_size=8)
    batch = collate([dataset[SampleIndex(item, 9, item + 4)] for item in range(3)])
    assert batch["lq"].shape == (3, 3, 4, 4) and batch["gt"].shape == (3, 3, 8, 8)
    assert batch["name"] == ["im0", "im1", "im2"] and batch["sample"] == [4, 5, 6] and batch["iteration"] == 9
    assert "gt" not in collate([opened((None, Path(dataset.lq_path(0)).parent))[0]])


@given(st.integers(0, 99), st.booleans(), st.booleans())
def test_augmentation_commutes_with_enlarging(seed: int, hflip: bool, rotate: bool) -> None:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    large = np.kron(small, np.ones((3, 3, 1), np.uint8))
    one, other = augment([small, large], hflip, rotate, np.random.default_rng(seed))
    assert np.array_equal(np.kron(one, np.ones((3, 3, 1), np.uint8)), other)
    if not rotate:
        assert np.array_equal(one, small) or (hflip and np.array_equal(one, small[:, ::-1]))


def test_all_eight_orientations_occur() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    seen = {augment([image], True, True, np.random.default_rng(seed))[0].tobytes() for seed in range(100)}
    assert len(seen) == 8


def test_every_crop_position_occurs() -> None:
    rows, columns = np.mgrid[:5, :4].astype(np.uint8)
    image = np.stack([rows, columns, rows], -1)
    patches = [random_crop(image, None, 1, 3, np.random.default_rng(seed))[0] for seed in range(200)]
    corners = {tuple(patch[0, 0, :2].tolist()) for patch in patches}
    assert corners == {(row, column) for row in range(3) for column in range(2)}
    assert crop_pair(image, None, 2, 0, 0, 1, 1)[1] is None


def test_cache_keeps_what_fits_and_cannot_be_written() -> None:
    cache = ImageCache(100)
    loads: list[str] = []

    def load(name: str) -> np.ndarray:
        loads.append(name)
        return np.zeros((4, 5, 3), np.uint8)

    for name in ("a", "b", "a", "b"):
        image = cache.get(name, lambda name=name: load(name))  # type: ignore[misc]
        with pytest.raises(ValueError, match="read-only"):
            image[0, 0, 0] = 1
    assert loads == ["a", "b", "b"]


def test_real_pairs(data_root: Path) -> None:
    folder = data_root / "benchmark" / "Set5"
    dataset = opened((folder / "HR", folder / "LR_bicubic" / "X3"), scale=3, filename_tmpl="{}x3")
    for sample in map(dataset.__getitem__, range(5)):
        assert np.array_equal(downscale(to_image(sample["gt"]), 3), to_image(sample["lq"]))
