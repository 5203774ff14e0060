"""Nothing is written outside the folders of a run, whatever names say; and no name ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lmdb
import pytest
import yaml
from workshop import Workshop, error_lines, test_options

from basicsr_quant.cli.main import main, test_main, train_main
from basicsr_quant.io.images import encode_image, read_image

test_main.__test__ = False  # type: ignore[attr-defined]
Capture = pytest.CaptureFixture[str]
HOSTILE = ["..", ".", "../up", "a/../../up", "/abs", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[2J", "a\u202eb", "x" * 161,
           "\u00e4" * 100]
ODD = "-rf ~ $(touch it_ran) %s {0} 'q\" *?[a] \u00fc\u65e5 CON"
LONG = "/".join(["x" * 200] * 2)
TOO_LONG = "x" * 300
IMPOSSIBLE = [TOO_LONG, f"weights/{TOO_LONG}/w.pth", "weights/fp.pth/under_a_file", "a\0b", "/dev/null"]


def files(folder: Path) -> set[str]:
    """Everything below a folder and beside it, but for option files."""
    return {str(path) for path in folder.parent.rglob("*") if path.suffix != ".yml"}


def assert_one_error(code: int, capfd: Capture, *parts: str) -> None:
    lines = error_lines(capfd.readouterr().err)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert lines[0].isprintable(), lines
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:12]))
def test_names_that_lead_elsewhere(workshop: Workshop, capfd: Capture, value: str) -> None:
    tested = test_options(workshop.fp, "weights/fp.pth")
    before = files(workshop.folder)
    for options, keys in ((workshop.fp, ("name", "datasets:train:name", "datasets:val:name")),
                          (tested, ("name", "datasets:test_1:name", "val:suffix"))):
        run = workshop.train if options is workshop.fp else workshop.test
        for key in keys:
            code = run(options, f"{key}={json.dumps(value)}", "val:save_img=true")
            assert_one_error(code, capfd, "a text holds a NUL" if "\0" in value else f"'{key}'")
    assert files(workshop.folder) == before


def test_odd_names_stay_inside(workshop: Workshop) -> None:
    """Shells, formats, patterns and other systems would make something of these; they are names like others."""
    before = files(workshop.folder)
    for folder in (workshop.folder / "data/val/HR", workshop.folder / "data/val/LR"):
        (image,) = folder.glob("im1*.png")
        image.rename(image.with_name(image.name.replace("im1", ODD)))
    renamed = files(workshop.folder)
    options = workshop.fp | {"name": ODD}
    options["datasets"]["val"]["name"] = f"{ODD} set"
    options["logger"]["use_tb_logger"] = True
    options["train"]["total_iter"] = options["val"]["val_freq"] = 1
    options["val"]["save_img"] = True
    workshop.write(options, "odd")
    assert train_main(["-opt", "odd.yml"]) == 0
    tested = test_options(options, "weights/fp.pth") | {"name": ODD}
    tested["val"] |= {"suffix": f"{ODD} end"}
    workshop.write(tested, "odd")
    assert test_main(["-opt", "odd.yml"]) == 0
    made = {Path(path).relative_to(workshop.folder) for path in files(workshop.folder) - renamed}
    homes = {Path(root) / ODD for root in ("experiments", "results", "tb_logger")}
    assert {Path(*path.parts[:2]) for path in made if len(path.parts) > 1} == homes
    assert {path for path in made if len(path.parts) == 1} == {home.parent for home in homes}
    images = {path.name for path in made if path.parent == Path("results") / ODD / "visualization" / f"{ODD} set"}
    assert images == {f"{stem}_{ODD} end.png" for stem in ("im0", ODD, "im2")}
    assert len(before) == len(renamed) and not (workshop.folder / "it_ran").exists()


def test_names_of_images(workshop: Workshop, capfd: Capture) -> None:
    """Each result has the name of its image; one that no file system takes is one line."""
    folder = workshop.folder / "data/val/LR"
    image = read_image(folder / "im0x2.png")
    for path in folder.iterdir():
        path.unlink()
    names = [" ", "-", "~", "a\nb", "%s", "CON", "\u00fc", "a..b", "x" * 200]
    for name in names:
        (folder / f"{name}.png").write_bytes(encode_image(image))
    tested = test_options(workshop.fp, "weights/fp.pth")
    del tested["datasets"]["test_1"]["dataroot_gt"]
    before = files(workshop.folder)
    assert workshop.test(tested, "val:save_img=true", "val:suffix=s") == 0
    capfd.readouterr()
    code = workshop.test(tested, "name=long", "val:save_img=true", f"val:suffix={'s' * 50}")
    assert_one_error(code, capfd, "File name too long")
    made = [Path(path) for path in files(workshop.folder) - before]
    assert all((workshop.folder / "results") in (path, *path.parents) for path in made)
    assert {path.name for path in made if "test_fp" in path.parts and path.suffix == ".png"} == {
        f"{name}_s.png" for name in names}


@pytest.mark.parametrize("name", ["../../up", "/abs", "..", "a/b/c", "a\0b"])
def test_names_in_a_database(workshop: Workshop, capfd: Capture, name: str) -> None:
    """What meta_info.txt calls an image names no folder."""
    root = workshop.folder / "data" / "val.lmdb"
    image = read_image(workshop.folder / "data/val/LR/im0x2.png")
    with lmdb.open(str(root), map_size=2**20) as environment, environment.begin(write=True) as transaction:
        for key in (name, Path(name).stem):
            transaction.put(key.encode(), encode_image(image))
    (root / "meta_info.txt").write_text(f"{name}.png ({image.shape[0]},{image.shape[1]},3) 1\n")
    tested = test_options(workshop.fp, "weights/fp.pth")
    tested["datasets"]["test_1"] = {"name": "val", "dataroot_lq": str(root), "io_backend": {"type": "lmdb"}}
    before = files(workshop.folder)
    code = workshop.test(tested, "val:save_img=true", "val:suffix=''")
    made = [Path(path) for path in files(workshop.folder) - before]
    assert all((workshop.folder / "results") in (path, *path.parents) for path in made)
    if "\0" in name:
        assert_one_error(code, capfd, "meta_info.txt")
    else:
        assert code == 0
        assert [path.parent.name for path in made if path.suffix == ".png"] == ["val"]


@pytest.mark.parametrize(("roots", "name", "thing"), [
    ("path:experiments_root=experiments", "pretrained_models", "experiments/pretrained_models/w.pth"),
    ("path:experiments_root=.", "data", "data/train/HR/im0.png"),
    ("path:experiments_root=data", "val", "data/val/HR/im0.png"),
    ("path:tb_root=.", "weights", "weights/fp.pth"),
    ("path:results_root=results", "tables", "results/tables/t/cell-0.json"),
    ("path:results_root=.", "weights", "weights/fp.pth"),
    ("path:results_root=weights", "fp.pth", "weights/fp.pth"),
])
def test_folders_that_are_of_no_run(workshop: Workshop, capfd: Capture, roots: str, name: str, thing: str) -> None:
    """Data, weights and tables are not put aside like an earlier run of the same name."""
    path = workshop.folder / thing
    path.parent.mkdir(parents=True, exist_ok=True)
    path.exists() or path.write_bytes(b"kept")
    before, content = files(workshop.folder), path.read_bytes()
    tested = test_options(workshop.fp, "weights/fp.pth")
    run, options = (workshop.test, tested) if "results" in roots else (workshop.train, workshop.fp)
    assert_one_error(run(options, roots, f"name={name}"), capfd, "is not the folder of a run; choose another name")
    assert files(workshop.folder) == before and path.read_bytes() == content


@pytest.mark.parametrize(("key", "value"), [
    *((key, value) for key in ("path:pretrain_network_g", "path:resume_state", "datasets:train:dataroot_lq")
      for value in (*IMPOSSIBLE, LONG, "weights", "")),
    *(("path:experiments_root", value) for value in IMPOSSIBLE),
])
def test_paths_that_cannot_be(workshop: Workshop, capfd: Capture, key: str, value: str) -> None:
    before = files(workshop.folder)
    code = workshop.train(workshop.fp, f"{key}={json.dumps(value)}", "logger:use_tb_logger=false")
    assert_one_error(code, capfd)
    made = {Path(path).relative_to(workshop.folder).parts[:2] for path in files(workshop.folder) - before}
    assert made <= {("experiments",), ("experiments", "fp")}


@pytest.mark.parametrize("value", [LONG, TOO_LONG, "weights/fp.pth/under_a_file", "weights", "/dev/null"])
def test_paths_on_the_command_line(workshop: Workshop, capfd: Capture, value: str) -> None:
    workshop.write(test_options(workshop.fp, "weights/fp.pth"), "tested")
    before = files(workshop.folder)
    for command in (["infer", "-i", "data/val/LR", "-o", "out", "-w", value],
                    ["infer", "-i", value, "-o", "out", "-w", "weights/fp.pth", "-opt", "tested.yml"],
                    ["inspect", "-opt", value], ["table", "show", f"{value}.yml"], ["report", value, "-o", "page"],
                    ["calibration-data", "-opt", value], ["analyse", "-opt", value],
                    ["pack", "-opt", value, "-o", "out.safetensors"]):
        assert_one_error(main(command), capfd)
    assert_one_error(train_main(["-opt", value]), capfd, value)
    assert files(workshop.folder) == before


@pytest.mark.parametrize("changes", [{"name": "../up"}, {"name": "/abs"}, {"labels": {"a": "../../up"}},
                                     {"labels": {"a": "..", "b": ".."}}, {"labels": {"a": "x" * 300}}])
def test_tables(workshop: Workshop, capfd: Capture, changes: dict[str, Any]) -> None:
    workshop.write(test_options(workshop.fp, "weights/fp.pth"), "tested")
    labels = changes.get("labels", {"a": "a"})
    table = {"name": changes.get("name", "small"), "title": "t", "protocol": "p",
             "cells": [{"labels": labels, "test": {"opt": "tested.yml"}}]}
    (workshop.folder / "t.yml").write_text(yaml.safe_dump(table))
    before = files(workshop.folder)
    for action in ("run", "show"):
        assert_one_error(main(["table", action, "t.yml"]), capfd)
    assert files(workshop.folder) == before


@pytest.mark.parametrize("name", ["../../up", "/abs", "..", "x" * 300, "a\nb"])
def test_names_in_the_results_of_a_run(workshop: Workshop, capfd: Capture, name: str) -> None:
    """A page of results is written into its own folder, whatever data sets and images in metrics.json are called."""
    run = workshop.folder / "results" / "run"
    run.mkdir(parents=True)
    entry = {"mean": {"psnr": 30.0}, "images": 1, "seconds": 1.0}
    (run / "metrics.json").write_text(json.dumps({"val": entry} if len(name) > 255 else {"val": entry, name: entry}))
    (run / "val.csv").write_text(f'image,psnr\n"{name}",30.0\nAVERAGE,30.0\n')
    (workshop.folder / "up_run.png").write_bytes((workshop.folder / "data/val/HR/im0.png").read_bytes())
    before = files(workshop.folder)
    code = main(["report", "results/run", "-o", "page"])
    assert code in (0, 2) and (code == 0 or len(error_lines(capfd.readouterr().err)) == 1)
    made = [Path(path) for path in files(workshop.folder) - before]
    assert all((workshop.folder / "page") in (path, *path.parents) for path in made)
    assert code == 2 or (workshop.folder / "page/index.html") in made
