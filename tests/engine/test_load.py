"""Many images, many names, large images, long logs: what they cost does not grow."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workshop import REPOSITORY, Workshop, make_weights, smooth_image, test_options

from basicsr_quant.data.bicubic import downscale
from basicsr_quant.data.build import build_dataset
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.engine import experiment
from basicsr_quant.io.images import encode_image, read_image, to_image, to_tensor, write_image
from basicsr_quant.models import restoring
from basicsr_quant.options.load import load_options
from basicsr_quant.options.types import DatasetOptions
from basicsr_quant.registry import MODELS

TINY = {"depths": [1], "num_heads": [1], "embed_dim": 4, "window_size": 8, "img_size": 8, "drop_path_rate": 0}
LINKS_OF_A_FILE = 20_000
PROGRAM = """
import sys
from pathlib import Path

def tell(label):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print("peak", label, status["VmHWM"].split()[0])

"""
RESTORING = """
from basicsr_quant.cli import main
from basicsr_quant.models import restoring

done, original = 0, restoring.to_image

def counted(part):
    global done
    if done in (100, 1000):
        tell(done)
    done += 1
    return original(part)

restoring.to_image = counted
assert getattr(main, sys.argv[1])(sys.argv[2:]) == 0
tell("end")
"""
NAMES = """
from basicsr_quant.data.build import build_dataset
from basicsr_quant.deploy.infer import images_in
from basicsr_quant.options.types import DatasetOptions

def opened(root):
    data = DatasetOptions(name="x", dataroot_gt=root + "/HR", dataroot_lq=root + "/LR", filename_tmpl="{}x2")
    return build_dataset(data, 2, "test", 0)

opened("few")[0]
tell("few")
many = opened("many")
tell("many")
images = images_in(Path("many/LR"))
tell("listed")
assert len(many) == len(images) == 100_000
for index in range(0, 100_000, 200):
    assert many[index]["gt"].shape == (3, 64, 64)
tell("read")
"""


def peaks(folder: Path, work: str, *arguments: str) -> dict[str, int]:
    """Run a program; return the peak of its resident memory in bytes, by the labels that it tells."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc here")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run([sys.executable, "-c", PROGRAM + work, *arguments], cwd=folder, env=variables,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {label: int(size) * 1024 for label, size in re.findall(r"peak (\w+) (\d+)", run.stdout)}


def many(folder: Path, content: bytes, names: list[str]) -> None:
    """Fill a folder with links to a few copies of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(names):
        if position % LINKS_OF_A_FILE == 0:
            original = folder / name
            original.write_bytes(content)
        else:
            os.link(original, folder / name)


def image_pairs(root: Path, count: int, side: int) -> None:
    """Make pairs of scale 2, all alike."""
    image = smooth_image(np.random.default_rng(1), side, side)
    many(root / "HR", encode_image(image), [f"im{number:06}.png" for number in range(count)])
    many(root / "LR", encode_image(downscale(image, 2)), [f"im{number:06}x2.png" for number in range(count)])


def opened(root: Path, phase: str) -> PairedImageDataset:
    options = DatasetOptions(name="x", dataroot_gt=str(root / "HR"), dataroot_lq=str(root / "LR"),
                             filename_tmpl="{}x2", gt_size=16)
    return build_dataset(options, 2, phase, 0)


@pytest.mark.parametrize("phase", ["val", "test"])
def test_images_are_not_kept(tmp_path: Path, phase: str) -> None:
    image_pairs(tmp_path, 40, 64)
    dataset = opened(tmp_path, phase)
    tracemalloc.start()
    try:
        held = []
        for index in range(len(dataset)):
            assert dataset[index]["gt"].shape == (3, 64, 64)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[-1] - held[4] < 4 * 64 * 64 * 3


def test_a_name_costs_less_than_a_kilobyte(tmp_path: Path) -> None:
    image_pairs(tmp_path, 400, 16)
    opened(tmp_path, "test")
    tracemalloc.start()
    try:
        dataset = opened(tmp_path, "test")
        assert tracemalloc.get_traced_memory()[0] < 1024 * len(dataset) == 1024 * 400
    finally:
        tracemalloc.stop()


def lines_of(folder: Path, name: str) -> list[str]:
    """Lines of a log and of its former files, oldest first."""
    files = sorted(folder.glob(f"{name}.log*"), key=lambda path: -int((path.suffix[1:] + "0").replace("log0", "0")))
    return [line for path in files for line in path.read_text().splitlines()]


def test_a_log_keeps_five_former_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (experiment.LOG_BYTES, experiment.LOG_FILES) == (16 * 2**20, 5)
    monkeypatch.setattr(experiment, "LOG_BYTES", 3000)
    for first in (0, 500):  # the second time as a resumed run
        experiment.start_logging(tmp_path, "train_x", True)
        for number in range(first, first + 500):
            logging.getLogger("basicsr_quant").info("line %d", number)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train_x.log", *(f"train_x.log.{number}" for number in range(1, 6))]
    assert all(path.stat().st_size <= 3000 for path in tmp_path.iterdir())
    numbers = [int(line.rsplit(" ", 1)[1]) for line in lines_of(tmp_path, "train_x")]
    assert len(numbers) > 300 and numbers == list(range(numbers[0], 1000))


def test_the_log_of_a_resumed_run_goes_on(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through a rotation."""
    monkeypatch.setattr(experiment, "LOG_BYTES", 500)
    del workshop.fp["val"]
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    before = lines_of(workshop.experiment("fp"), "train_fp")
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 0
    lines = lines_of(workshop.experiment("fp"), "train_fp")
    assert lines[:len(before)] == before and "resuming from" in lines[len(before)]
    assert [int(number) for number in re.findall(r"iteration (\d)/\d, lr", "\n".join(lines))] == [1, 2, 3, 4]
    assert len(list(workshop.experiment("fp").glob("train_fp.log.*"))) > 0


def tiny_test(workshop: Workshop, **val: Any) -> dict[str, Any]:
    """Test options of a network of 4 channels."""
    make_weights(workshop.folder / "weights/fp.pth", **TINY)
    workshop.fp["network_g"] |= TINY
    tested = test_options(workshop.fp, "weights/fp.pth")
    tested["val"] = val
    return tested


@pytest.mark.parametrize("ensemble", [False, True])
def test_tiles_are_rounded_one_by_one(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, ensemble: bool) -> None:
    """No float image is larger than a tile, and the result is that of rounding the whole."""
    options = load_options(workshop.write(tiny_test(workshop, tile=16, tile_overlap=4, self_ensemble=ensemble)),
                           is_train=False)
    model = MODELS.build(options.model_type, options, torch.device("cpu"))
    model.load_pretrained(training=False)
    image = to_tensor(smooth_image(np.random.default_rng(1), 50, 37))[None]
    whole = to_image(model.restore(image))
    shapes = []
    monkeypatch.setattr(restoring, "to_image", lambda part: (shapes.append(part.shape), to_image(part))[1])
    assert np.array_equal(restoring.restore_file(model, image, model.network, 0, "x"), whole)
    assert len(shapes) == 12 and max(max(shape[2:]) for shape in shapes) <= 2 * 16
    assert torch.is_inference_mode_enabled() is False


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), pytest.param((20000, 50), marks=pytest.mark.slow)])
def test_tiles_of_extreme_shapes(workshop: Workshop, shape: tuple[int, int]) -> None:
    """Tiles on the window grid whose overlap is wider than what the network sees give the image of the whole."""
    pieces = []
    for tile in (0, 2048):
        options = load_options(workshop.write(tiny_test(workshop, tile=tile, tile_overlap=48)), is_train=False)
        model = MODELS.build(options.model_type, options, torch.device("cpu"))
        model.load_pretrained(training=False)
        image = to_tensor(smooth_image(np.random.default_rng(1), *shape))[None]
        pieces.append(restoring.restore_file(model, image, model.network, 0, "x"))
    assert pieces[0].shape == (2 * shape[0], 2 * shape[1], 3)
    assert np.abs(pieces[0].astype(int) - pieces[1]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "test", "infer"])
def test_a_thousand_images_take_the_memory_of_a_hundred(workshop: Workshop, command: str) -> None:
    image_pairs(workshop.folder / "many", 1001, 96)
    options = tiny_test(workshop, **workshop.fp["val"], save_img=True)
    data = {"dataroot_gt": "many/HR", "dataroot_lq": "many/LR"}
    options["datasets"]["test_1"] |= data
    if command == "train":  # its validation
        workshop.fp["datasets"]["val"] |= data
        options = workshop.fp | {"train": workshop.fp["train"] | {"total_iter": 1}}
    words = {"infer": ["main", "infer", "-i", "many/LR", "-o", "out", "-w", "weights/fp.pth", "--device", "cpu"]}
    found = peaks(workshop.folder, RESTORING, *words.get(command, [f"{command}_main"]), "-opt",
                  str(workshop.write(options)))
    assert set(found) == {"100", "1000", "end"}
    assert found["1000"] < 1.05 * found["100"], found


@pytest.mark.slow
def test_a_hundred_thousand_names(tmp_path: Path) -> None:
    """They are opened in less than a kilobyte each, and what is read then adds nothing."""
    image_pairs(tmp_path / "few", 10, 64)
    image_pairs(tmp_path / "many", 100_000, 64)
    found = peaks(tmp_path, NAMES)
    assert found["many"] - found["few"] < 100_000 * 1024 > found["listed"] - found["many"], found
    assert found["read"] < 1.05 * found["listed"], found


@pytest.mark.slow
@pytest.mark.parametrize("command", ["test", "infer"])
def test_a_large_image_in_tiles(workshop: Workshop, command: str) -> None:
    """4096 x 4096 LR pixels by two: the whole process takes less than its 8-bit result and a gibibyte."""
    rows, columns = np.indices((4096, 4096))
    image = np.stack([rows // 16 + columns // 8, rows * columns // 4096, (rows + 2 * columns) // 48], -1)
    noisy = image + np.random.default_rng(0).integers(0, 8, image.shape)
    write_image(workshop.folder / "large/image.png", noisy.astype(np.uint8))
    tested = tiny_test(workshop, save_img=True, suffix="", tile=256, tile_overlap=16)
    tested["datasets"] = {"test_1": {"name": "large", "dataroot_lq": "large"}}
    words = {"infer": ["main", "infer", "-i", "large", "-o", "results/test_fp/visualization/large", "-w",
                       "weights/fp.pth", "--device", "cpu", "--tile", "256"], "test": ["test_main"]}
    found = peaks(workshop.folder, RESTORING, *words[command], "-opt", str(workshop.write(tested)))
    assert read_image(workshop.folder / "results/test_fp/visualization/large/image.png").shape == (8192, 8192, 3)
    assert found["end"] < 8192 * 8192 * 3 + 2**30, found
