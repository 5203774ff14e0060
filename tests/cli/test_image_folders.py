"""Folders with good and bad images: the good ones are restored, each bad one is named in one line, the code tells."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from workshop import Workshop, error_lines, test_options

from basicsr_quant.cli.main import main
from basicsr_quant.io.images import read_image, write_image

Capture = pytest.CaptureFixture[str]
NO_UTF8 = os.fsdecode(b"im\xe9")
BAD_NAMES = ["broken", "circle", "cut_jpeg", "cut_png", "empty", "large", "text"]


def picture(seed: int, height: int = 12, width: int = 14) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def good_images(folder: Path) -> list[str]:
    """Write images of every kind; return their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    deep = Image.fromarray((np.arange(12 * 14).reshape(12, 14) * 389).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    made: dict[str, Image.Image] = {
        "grey.png": picture(1).convert("L"), "palette.png": picture(2).quantize(16), "alpha.png": picture(3),
        "cmyk.jpg": picture(4).convert("CMYK"), "deep.png": deep, "deep.tif": deep, "dot.png": picture(5, 1, 1),
        "strip.bmp": picture(6, 3, 90), "日本 é.webp": picture(7), "turned.jpg": picture(8),
    }
    made["alpha.png"].putalpha(77)
    made["deep_too.tif"] = made.pop("deep.tif")
    for name, image in made.items():
        image.save(folder / name, **({"exif": turned} if name == "turned.jpg" else {}))
    picture(9).save(folder.parent / "elsewhere.png")
    (folder / "linked.png").symlink_to(folder.parent / "elsewhere.png")
    picture(10).save(os.fsencode(folder) + b"/caf\xe9.png")
    return sorted([*(Path(name).stem for name in made), "linked", os.fsdecode(b"caf\xe9")])


def bad_images(folder: Path) -> None:
    """Write one file for each of ``BAD_NAMES``; ``large`` has 900 pixels."""
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    for suffix in ("png", "jpeg"):
        buffer = io.BytesIO()
        picture(11).save(buffer, suffix)
        (folder / f"cut_{suffix}.{suffix}").write_bytes(buffer.getvalue()[:-60])
    (folder / "broken.png").symlink_to(folder / "nowhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    picture(12, 30, 30).save(folder / "large.png")


def plain_copies(source: Path, target: Path) -> None:
    """Write each good image again as plain 8-bit RGB, converted by Pillow alone."""
    for path in source.iterdir():
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "I;16":
                values = (np.asarray(upright).astype(int) + 128) // 257
                upright = Image.fromarray(values.astype(np.uint8))
            write_image(target / f"{path.stem}.png", np.asarray(upright.convert("RGB")))


def named_in(errors: str) -> list[str]:
    """Stems of the files that warnings name, sorted."""
    return sorted(re.findall(r"WARNING: .*?'[^']*?([^'/]+)\.\w+'", errors))


def infer(workshop: Workshop, source: str, output: str, *arguments: str) -> int:
    options = workshop.write(test_options(workshop.fp, "weights/fp.pth"))
    return main(["infer", "-i", source, "-o", output, "-w", "weights/fp.pth", "-opt", str(options), "--device", "cpu",
                 *arguments])


@pytest.fixture
def folder(workshop: Workshop) -> Path:
    """Good images in ``mixed``, the same as plain files in ``plain``."""
    good_images(workshop.folder / "mixed")
    plain_copies(workshop.folder / "mixed", workshop.folder / "plain")
    return workshop.folder / "mixed"


def test_infer(workshop: Workshop, folder: Path, capfd: Capture) -> None:
    stems = sorted(path.stem for path in folder.iterdir())
    assert len(stems) == 12 and infer(workshop, "plain", "expected") == infer(workshop, "mixed", "clean") == 0
    bad_images(folder)
    capfd.readouterr()
    assert infer(workshop, "mixed", "found", "--max-pixels", "899") == 2
    for output in ("clean", "found"):
        assert sorted(path.stem for path in (workshop.folder / output).iterdir()) == stems
        for path in (workshop.folder / output).iterdir():
            assert path.read_bytes() == (workshop.folder / "expected" / path.name).read_bytes(), path
    errors = capfd.readouterr().err
    assert named_in(errors) == BAD_NAMES
    assert "large.png' has 30x30 pixels (height x width), more than the limit of 899; cut it into parts" in errors
    last, = error_lines(errors)
    assert last.startswith("error: 7 of 19 images failed; first: ") and "broken.png" in last


def test_test_without_references(workshop: Workshop, folder: Path, capfd: Capture) -> None:
    assert infer(workshop, "plain", "expected") == 0
    bad_images(folder)
    tested = test_options(workshop.fp, "weights/fp.pth")
    tested["datasets"] = {"test_1": {"name": "mixed", "dataroot_lq": "mixed", "max_pixels": 899}}
    tested["val"] = {"save_img": True, "suffix": ""}
    capfd.readouterr()
    assert workshop.test(tested) == 2
    found = sorted((workshop.folder / "results/test_fp/visualization/mixed").iterdir())
    assert len(found) == 12
    for path in found:
        assert path.read_bytes() == (workshop.folder / "expected" / path.name).read_bytes(), path
    errors = capfd.readouterr().err
    assert named_in(errors) == BAD_NAMES
    last, = error_lines(errors)
    assert last.startswith("error: 7 of 19 images of 'mixed' failed; first: ")


def spoil(root: Path) -> None:
    """Make 9 pairs of which one is good; ``extra`` is an LR image alone."""
    for number in range(3, 10):
        for place, suffix in (("HR", ""), ("LR", "x2")):
            shutil.copy(root / place / f"im0{suffix}.png", root / place / f"im{number}{suffix}.png")
    (root / "LR/im1x2.png").write_text("no image")
    (root / "HR/im2.png").write_bytes((root / "HR/im2.png").read_bytes()[:-60])
    (root / "LR/im3x2.png").unlink()
    (root / "LR/extra.png").write_bytes((root / "LR/im0x2.png").read_bytes())
    write_image(root / "LR/im4x2.png", np.zeros((12, 13, 3), np.uint8))
    (root / "HR/im5.png").unlink()
    (root / "HR/im5.png").symlink_to("im5.png")
    (root / "LR/im6x2.png").write_bytes(b"")
    (root / "LR" / f"{NO_UTF8}2x2.png").write_bytes(b"")
    shutil.copy(root / "HR/im0.png", root / "HR" / f"{NO_UTF8}2.png")
    write_image(root / "LR/im7x2.png", np.zeros((1, 1, 3), np.uint8))
    write_image(root / "HR/im7.png", np.zeros((2, 2, 3), np.uint8))  # nothing is left to measure
    (root / "HR/im8.png").unlink()
    (root / "HR/im9.png").rename(root / "HR" / f"{NO_UTF8}.png")
    (root / "LR/im9x2.png").rename(root / "LR" / f"{NO_UTF8}x2.png")


def test_test_with_references(workshop: Workshop, capfd: Capture) -> None:
    """What is wrong with one image stops neither the others nor the next data set."""
    tested: dict[str, Any] = test_options(workshop.fp, "weights/fp.pth")
    first = tested["datasets"]["test_1"]
    assert workshop.test(tested) == 0
    results = workshop.folder / "results/test_fp"
    before = (results / "val.csv").read_text().splitlines()
    spoil(workshop.folder / "data/val")
    tested["datasets"]["test_2"] = first | {"name": "train", "dataroot_gt": "data/train/HR",
                                            "dataroot_lq": "data/train/LR"}
    capfd.readouterr()
    assert workshop.test(tested) == 2
    rows = list(csv.reader((results / "val.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["image", "im0", "im\\udce9"] and rows[1] == before[1].split(",")
    assert rows[1][1:] == rows[2][1:]
    summary = json.loads((results / "metrics.json").read_text())
    assert list(summary) == ["train"] and summary["train"]["images"] == 3
    errors = capfd.readouterr().err
    for parts in (("im1x2.png", "corrupt or no image"), ("im2.png", "truncated"), ("im3.png", "no LR partner 'im3x2'"),
                  ("im4x2.png", "24x28", "12x13"), ("im5.png", "leads to no file"), ("im6x2.png", "is empty"),
                  ("2x2.png'", "is empty"), ("im7.png", "crop_border"), ("im8x2.png", "no HR partner"),
                  ("extra.png", "no HR partner")):
        for text in (errors, (results / "test_test_fp.log").read_text()):
            lines = [line for line in text.splitlines() if "WARNING" in line]
            assert sum(all(part in line for part in parts) for line in lines) == 1, (parts, lines)
    last, = error_lines(errors)
    assert last.startswith("error: 10 of 12 images of 'val' failed; first: ")


def test_training_refuses_defects_before_it_begins(workshop: Workshop, capfd: Capture) -> None:
    (workshop.folder / "data/val/LR/im1x2.png").write_text("no image")
    assert workshop.train(workshop.fp) == 2
    last, = error_lines(capfd.readouterr().err)
    assert "data/val/LR/im1x2.png' is corrupt or no image" in last
    assert not list(workshop.folder.rglob("*.state"))


def test_an_image_that_does_not_fit_into_memory(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capfd: Capture,
) -> None:
    """The others are restored; the message names the file and the way out."""
    from basicsr_quant.models.sr import SRModel

    original = SRModel.restore

    def restore(self: SRModel, image: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if image.shape[-1] == 90:
            torch.empty(2**55)
        return original(self, image, *arguments)

    monkeypatch.setattr(SRModel, "restore", restore)
    for name, size in (("a", (12, 14)), ("b", (3, 90)), ("c", (4, 4))):
        write_image(workshop.folder / f"sizes/{name}.png", np.asarray(picture(1, *size)))
    assert infer(workshop, "sizes", "out") == 2
    last, = error_lines(capfd.readouterr().err)
    assert "1 of 3 images failed; first: 'sizes/b.png' (3x90) does not fit into memory" in last and "--tile" in last
    assert [read_image(path).shape for path in sorted((workshop.folder / "out").iterdir())] == [(24, 28, 3), (8, 8, 3)]
