"""Calibration patches: a pure function of their arguments, cached, saved and read back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from basicsr_quant.data.calibration import CalibrationSet, calibration_patches, load_calibration_file, save_calibration
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import read_image, write_image

MakePairs = Callable[..., tuple[Path, Path]]


def opened(folders: tuple[Path, Path], **options: Any) -> PairedImageDataset:
    named = {"dataroot_gt": folders[0], "dataroot_lq": folders[1], "scale": 2, "filename_tmpl": "{}x2"}
    return PairedImageDataset(**named | options)


def test_pure_function(make_pairs: MakePairs) -> None:
    folders = make_pairs(5)
    first = calibration_patches(opened(folders), 4, 8, 1)
    again = calibration_patches(opened(folders, seed=7, read_gt=False), 4, 8, 1)
    assert first.lq.shape == (4, 3, 8, 8) and first.gt is not None and first.gt.shape == (4, 3, 16, 16)
    assert torch.equal(first.lq, again.lq) and first.digest == again.digest and again.gt is None and again.gt_path == []
    assert len(set(first.lq_path)) == 4 and first.lq_path[0].endswith("x2.png")
    assert not torch.equal(first.lq, calibration_patches(opened(folders), 4, 8, 2).lq)


def test_more_patches_than_images(make_pairs: MakePairs) -> None:
    patches = calibration_patches(opened(make_pairs(2)), 7, 8, 0)
    assert len({patch.numpy().tobytes() for patch in patches.lq}) == 7
    assert len(set(patches.lq_path[:2])) == len(set(patches.lq_path[2:4])) == 2


def test_digest_sees_every_argument(make_pairs: MakePairs) -> None:
    gt, lq = make_pairs(3)
    dataset = opened((gt, lq))
    choices = ((3, 8, 0), (2, 8, 0), (3, 9, 0), (3, 8, 1))
    digests = {calibration_patches(dataset, *arguments).digest for arguments in choices}
    changed = read_image(lq / "im1x2.png").copy()
    changed[0, 0] ^= 1
    write_image(lq / "im1x2.png", changed)
    digests.add(calibration_patches(opened((gt, lq)), 3, 8, 0).digest)
    digests.add(calibration_patches(opened((gt, lq), use_rot=False), 3, 8, 0).digest)
    assert len(digests) == 6


def test_cache_is_used_and_repaired(make_pairs: MakePairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    caplog: pytest.LogCaptureFixture) -> None:
    folders, keydata = make_pairs(3), tmp_path / "keydata"
    first = calibration_patches(opened(folders), 3, 8, 0, keydata)
    file = keydata / f"{first.digest}.safetensors"
    content = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(PairedImageDataset, "patch", None)
        second = calibration_patches(opened(folders), 3, 8, 0, keydata)
        third = calibration_patches(opened(folders, read_gt=False), 3, 8, 0, keydata)
    assert torch.equal(first.lq, second.lq) and torch.equal(first.gt, second.gt) and third.gt is None
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:100], b""):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert torch.equal(calibration_patches(opened(folders), 3, 8, 0, keydata).lq, first.lq)
        assert "damaged and are made again" in caplog.messages[-1] and file.read_bytes() == content
    file.unlink()
    calibration_patches(opened(folders, read_gt=False), 3, 8, 0, keydata)
    assert calibration_patches(opened(folders), 3, 8, 0, keydata).gt is not None and file.read_bytes() == content


def test_small_images_are_passed_over(make_pairs: MakePairs, caplog: pytest.LogCaptureFixture) -> None:
    gt, lq = make_pairs(3)
    write_image(gt / "im1.png", np.zeros((12, 12, 3), np.uint8))
    write_image(lq / "im1x2.png", np.zeros((6, 6, 3), np.uint8))
    with caplog.at_level(logging.WARNING):
        patches = calibration_patches(opened((gt, lq)), 6, 8, 0)
    assert not any("im1x2" in path for path in patches.lq_path) and "passes over 1 of 3 images" in caplog.text
    with pytest.raises(UserError, match="no image is as large as a calibration patch of 14x14 LR pixels"):
        calibration_patches(opened((gt, lq)), 6, 14, 0)


@pytest.mark.parametrize("name", ["cali_data_x2.pth", "patches.safetensors"])
@pytest.mark.parametrize("read_gt", [True, False])
def test_saved_file_is_read_back(make_pairs: MakePairs, tmp_path: Path, name: str, read_gt: bool) -> None:
    patches = calibration_patches(opened(make_pairs(3), read_gt=read_gt), 3, 8, 0)
    save_calibration(tmp_path / name, patches)
    again = load_calibration_file(tmp_path / name, 2)
    assert torch.equal(again.lq, patches.lq) and (again.gt is None) == (not read_gt)
    assert len(again.digest) == 64 and (name.endswith("safetensors") or again.lq_path == patches.lq_path)


def test_published_layout(make_pairs: MakePairs, tmp_path: Path) -> None:
    save_calibration(tmp_path / "cali.pth", calibration_patches(opened(make_pairs(3)), 3, 8, 0))
    content = torch.load(tmp_path / "cali.pth", weights_only=True)
    assert set(content) == {"lq", "gt", "lq_path", "gt_path"} and len(content["gt_path"]) == 3


@pytest.mark.parametrize(("change", "text"), [
    ({"lq": None}, "is no calibration file"),
    ({"lq": torch.rand(2, 1, 8, 8)}, "is no calibration file"),
    ({"lq": torch.rand(2, 3, 8, 8) * float("nan")}, "'lq' holds NaN"),
    ({"lq": torch.rand(2, 3, 8, 8) * 255}, "'lq' ranges from .* divide by 255"),
    ({"lq": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "'lq' is no float tensor"),
    ({"gt": torch.rand(2, 3, 24, 24)}, "was not made for scale 2"),
    ({"gt": [1]}, "'gt' is no float tensor"),
])
def test_unfit_files(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = tmp_path / "cali.pth"
    torch.save({"lq": torch.rand(2, 3, 8, 8), "gt": torch.rand(2, 3, 16, 16), "lq_path": ["a", "b"]} | change, path)
    with pytest.raises(UserError, match=rf"cali\.pth'.*{text}"):
        load_calibration_file(path, 2)


def test_a_list_is_no_calibration_file(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "cali.pth")
    with pytest.raises(UserError, match="is no calibration file"):
        load_calibration_file(tmp_path / "cali.pth")


def test_set_is_frozen() -> None:
    patches = CalibrationSet(torch.zeros(1, 3, 2, 2), None, [], [], "")
    with pytest.raises(AttributeError):
        patches.digest = "x"  # type: ignore[misc]
