"""The verb prepare-data."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from basicsr_quant.cli import prepare_data
from basicsr_quant.data.bicubic import downscale
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import read_image, write_image


def command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    prepare_data.add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["prepare-data", *map(str, words)])
    return int(arguments.func(arguments))


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    for name, size in (("a.png", (30, 41)), ("ü b.bmp", (24, 25)), ("c.d.png", (17, 40))):
        write_image(tmp_path / "HR" / name, random.integers(0, 256, (*size, 3), dtype=np.uint8))
    return tmp_path / "HR"


def test_folders(hr: Path, tmp_path: Path) -> None:
    assert command("--hr", hr, "--out", tmp_path, "--scale", 2, 3, 4, 2) == 0
    for scale in (2, 3, 4):
        for file in hr.iterdir():
            made = read_image(tmp_path / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png")
            assert np.array_equal(made, downscale(read_image(file), scale))
        dataset = PairedImageDataset(dataroot_gt=hr, dataroot_lq=tmp_path / "LR_bicubic" / f"X{scale}", scale=scale,
                                     filename_tmpl=f"{{}}x{scale}")
        assert len(dataset) == 3


def test_databases(hr: Path, tmp_path: Path) -> None:
    command("--hr", hr, "--out", tmp_path, "--scale", 2, "--lmdb")
    dataset = PairedImageDataset(dataroot_gt=tmp_path / "HR.lmdb", dataroot_lq=tmp_path / "LR_bicubic" / "X2.lmdb",
                                 scale=2, backend="lmdb")
    gt, lq = read_image(hr / "ü b.bmp"), read_image(tmp_path / "LR_bicubic" / "X2" / "ü bx2.png")
    images = dataset.images([pair.name for pair in dataset.pairs].index("ü b"))
    assert np.array_equal(images[0], lq) and images[1] is not None and np.array_equal(images[1], gt[:, :24])


def test_damaged_images_are_named_and_the_others_written(hr: Path, tmp_path: Path) -> None:
    (hr / "a.png").write_bytes((hr / "a.png").read_bytes()[:500])
    write_image(hr / "tiny.png", np.zeros((3, 9, 3), np.uint8))
    text = r"2 of 4 images .*'.*a\.png' is truncated.*; '.*tiny\.png' is 3x9, smaller"
    with pytest.raises(UserError, match=text) as caught:
        command("--hr", hr, "--out", tmp_path, "--scale", 4, "--lmdb")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "LR_bicubic" / "X4").iterdir()) == ["c.dx4.png", "ü bx4.png"]
    assert (tmp_path / "HR.lmdb" / "meta_info.txt").read_text(encoding="utf-8").count("\n") == 2


def test_wrong_arguments(hr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--hr: folder '.*none' does not exist"):
        command("--hr", tmp_path / "none", "--out", tmp_path, "--scale", 2)
    with pytest.raises(SystemExit) as caught:
        command("--hr", hr, "--out", tmp_path, "--scale", 1)
    assert caught.value.code == 2 and "whole number above 1" in capsys.readouterr().err
