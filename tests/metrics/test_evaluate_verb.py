"""The verb evaluate on small folders."""

from __future__ import annotations

import argparse
import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from basicsr_quant.cli.evaluate import Table, add_parser
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import read_image, write_image
from basicsr_quant.metrics.osediff import calculate_osediff_psnr
from basicsr_quant.metrics.psnr_ssim import calculate_psnr, calculate_ssim


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    for name in ("b", "a", "c"):
        gt = random.integers(0, 256, (24, 28, 3)).astype(np.uint8)
        write_image(tmp_path / "gt" / f"{name}.png", gt)
        sr = gt ^ random.integers(0, 8, gt.shape, np.uint8)
        write_image(tmp_path / "sr" / f"{name}.{'bmp' if name == 'c' else 'png'}", sr)
    (tmp_path / "sr" / "notes.txt").write_text("no image")
    return tmp_path / "sr", tmp_path / "gt"


def evaluate(*words: object) -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["evaluate", "--device", "cpu", *map(str, words)])
    arguments.func(arguments)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_table(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sr, gt = folders
    table = tmp_path / "out" / "table.csv"
    evaluate("--sr", sr, "--gt", gt, "--metrics", "psnr", "ssim", "--crop-border", 4, "--y-channel", "--csv", table)
    rows = rows_of(table)
    assert list(rows[0]) == ["image", "psnr", "ssim"]
    assert [row["image"] for row in rows] == ["a.png", "b.png", "c.bmp", "AVERAGE"]
    images = [(read_image(sr / row["image"]), read_image(gt / f"{row['image'][0]}.png")) for row in rows[:3]]
    psnr = [calculate_psnr(*pair, 4, True) for pair in images]
    ssim = [calculate_ssim(*pair, 4, True) for pair in images]
    assert [float(row["psnr"]) for row in rows] == pytest.approx([*psnr, sum(psnr) / 3], abs=1e-6)
    assert [float(row["ssim"]) for row in rows] == pytest.approx([*ssim, sum(ssim) / 3], abs=1e-6)
    output = capsys.readouterr().out
    assert "protocol basicsr: 8-bit RGB; psnr and ssim on Y; 4 pixels cut on each side for psnr, ssim" in output
    assert f"3 of 3 images: psnr {sum(psnr) / 3:.4f} (higher is better)" in output


def test_osediff_protocol(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sr, gt = folders
    evaluate("--sr", sr, "--gt", gt, "--metrics", "psnr", "--protocol", "osediff", "--csv", tmp_path / "t.csv")
    expected = calculate_osediff_psnr(read_image(sr / "a.png"), read_image(gt / "a.png"))
    assert float(rows_of(tmp_path / "t.csv")[0]["psnr"]) == pytest.approx(expected, abs=1e-6)
    assert "protocol osediff" in capsys.readouterr().out
    with pytest.raises(UserError, match="whole images"):
        evaluate("--sr", sr, "--gt", gt, "--protocol", "osediff", "--crop-border", 4)


def test_unpaired_files_are_named(folders: tuple[Path, Path]) -> None:
    sr, gt = folders
    (sr / "b.png").rename(sr / "bx4.png")
    with pytest.raises(UserError, match=r"'bx4' only in '.*sr'; 'b' only in '.*gt'"):
        evaluate("--sr", sr, "--gt", gt)


def test_bad_images_are_named_and_the_others_measured(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sr, gt = folders
    content = bytearray((sr / "a.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (sr / "a.png").write_bytes(content)
    write_image(sr / "c.bmp", read_image(gt / "c.png")[:-1])
    with pytest.raises(UserError, match=r"2 of 3 images could not.*a\.png: .*; c\.bmp: .*one size") as caught:
        evaluate("--sr", sr, "--gt", gt, "--metrics", "psnr", "--csv", tmp_path / "t.csv")
    assert "\n" not in str(caught.value)
    rows = {row["image"]: row["psnr"] for row in rows_of(tmp_path / "t.csv")}
    assert rows["a.png"] == rows["c.bmp"] == "" and rows["b.png"] == rows["AVERAGE"] != ""


def test_nothing_measurable(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sr, gt = folders
    for path in gt.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="3 of 3 images"):
        evaluate("--sr", sr, "--gt", gt, "--csv", tmp_path / "t.csv")
    assert rows_of(tmp_path / "t.csv")[-1] == {"image": "AVERAGE", "psnr": "nan", "ssim": "nan"}


def test_identical_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, gt = folders
    evaluate("--sr", gt, "--gt", gt, "--csv", tmp_path / "t.csv")
    assert rows_of(tmp_path / "t.csv")[-1] == {"image": "AVERAGE", "psnr": "inf", "ssim": "1.000000"}


@pytest.mark.parametrize(("words", "message"), [
    (["--sr", "{sr}"], "psnr, ssim compare with references; name their folder by --gt"),
    (["--sr", "{sr}/nowhere", "--gt", "{gt}"], "does not exist"),
    (["--sr", "{sr}", "--gt", "{gt}", "--crop-border", "-1"], "negative"),
    (["--sr", "{sr}", "--gt", "{gt}", "--metrics", "psrn"], "did you mean 'psnr'"),
])
def test_bad_options(folders: tuple[Path, Path], words: list[str], message: str) -> None:
    sr, gt = folders
    with pytest.raises(UserError, match=message):
        evaluate(*(word.format(sr=sr, gt=gt) for word in words))


def test_empty_folder_and_double_stem(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sr, gt = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        evaluate("--sr", tmp_path / "empty", "--gt", gt)
    write_image(sr / "a.bmp", read_image(sr / "a.png"))
    with pytest.raises(UserError, match="have one stem"):
        evaluate("--sr", sr, "--gt", gt)


def test_missing_weights_stop_before_the_first_image(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("lpips") is None:
        pytest.skip("lpips is not installed")
    sr, gt = folders
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="alexnet-owt-7be5be79.pth"):
        evaluate("--sr", sr, "--gt", gt, "--metrics", "psnr", "lpips", "--csv", tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


def test_averages_are_exact_sums() -> None:
    table = Table(("psnr",), {"a": (1e16,), "b": (1.0,), "c": (-1e16,)}, {})
    assert table.averages() == (1 / 3,)
