"""A place for tests to train and test tiny networks as a user does: data, option files, commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from basicsr_quant.archs.build import build_network
from basicsr_quant.archs.published.table import exporter
from basicsr_quant.cli.main import test_main as run_test
from basicsr_quant.cli.main import train_main as run_train
from basicsr_quant.data.bicubic import downscale
from basicsr_quant.io.images import Image, write_image
from basicsr_quant.options.component import Component

REPOSITORY = Path(__file__).parent.parent
NETWORK = {"type": "SwinIR", "upscale": 2, "img_size": 8, "window_size": 4, "img_range": 1.0, "depths": [2],
           "embed_dim": 12, "num_heads": [2], "mlp_ratio": 2, "upsampler": "pixelshuffledirect", "drop_path_rate": 0.3}


def smooth_image(generator: np.random.Generator, height: int, width: int) -> Image:
    coarse = generator.random((height // 4 + 2, width // 4 + 2, 3))
    rows = np.linspace(0, coarse.shape[0] - 1.001, height)
    columns = np.linspace(0, coarse.shape[1] - 1.001, width)
    row, column = rows.astype(int), columns.astype(int)
    down, right = (rows - row)[:, None, None], (columns - column)[None, :, None]
    top = coarse[row][:, column] * (1 - right) + coarse[row][:, column + 1] * right
    bottom = coarse[row + 1][:, column] * (1 - right) + coarse[row + 1][:, column + 1] * right
    return np.round((top * (1 - down) + bottom * down) * 255).astype(np.uint8)


def make_pairs(folder: Path, count: int, seed: int, height: int = 32, width: int = 36) -> None:
    generator = np.random.default_rng(seed)
    for number in range(count):
        image = smooth_image(generator, height, width)
        write_image(folder / "HR" / f"im{number}.png", image)
        write_image(folder / "LR" / f"im{number}x2.png", downscale(image, 2))


def make_set(root: Path, template: str, count: int, side: int) -> None:
    """Make square HR images and their LR ones of scale 4, laid out as published files expect."""
    generator = np.random.default_rng(3)
    for number in range(count):
        image = smooth_image(generator, side, side)
        write_image(root / "HR" / f"im{number}.png", image)
        write_image(root / "LR_bicubic/X4" / f"{template.format(f'im{number}')}.png", downscale(image, 4))


def make_weights(path: Path, **changes: Any) -> None:
    torch.manual_seed(5)
    network = {**NETWORK, **changes}
    arguments = {key: value for key, value in network.items() if key != "type"}
    component = Component(type="SwinIR", arguments=arguments)
    torch.save({"params": exporter(component)(build_network("SwinIR", arguments).state_dict())}, path)


def common_options() -> dict[str, Any]:
    def pairs(name: str) -> dict[str, Any]:
        return {"name": name, "dataroot_gt": f"data/{name}/HR", "dataroot_lq": f"data/{name}/LR",
                "filename_tmpl": "{}x2"}

    return {
        "mode": "corrected", "scale": 2, "num_gpu": 0, "manual_seed": 7,
        "datasets": {"train": {**pairs("train"), "gt_size": 16, "batch_size_per_gpu": 2}, "val": pairs("val")},
        "val": {"val_freq": 3, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2},
                                           "ssim": {"type": "calculate_ssim", "crop_border": 2}}},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": False},
    }


def fp_options() -> dict[str, Any]:
    return common_options() | {
        "name": "fp", "model_type": "SRModel", "network_g": dict(NETWORK),
        "train": {"total_iter": 4, "ema_decay": 0.9,
                  "optim_g": {"type": "Adam", "lr": 2e-3, "betas": [0.9, 0.99]},
                  "scheduler": {"type": "MultiStepLR", "milestones": [3], "gamma": 0.5},
                  "pixel_opt": {"type": "L1Loss"}},
    }


def dqc_options() -> dict[str, Any]:
    return common_options() | {
        "name": "dqc", "model_type": "TDQuantModel", "bit": 3, "network_Q": dict(NETWORK),
        "quant": {"calibration": {"patches": 4, "patch_size": 8, "batch_size": 2}},
        "pathFP": {"pretrain_network_FP": "weights/fp.pth"}, "train": {"total_iter": 4},
    }


def test_options(options: dict[str, Any], weights: str) -> dict[str, Any]:
    """The test file that belongs to a training file."""
    key = "pretrain_network_g" if options["model_type"] == "SRModel" else "pretrain_network_Q"
    kept = {name: value for name, value in options.items() if name not in ("train", "logger", "pathFP")}
    return kept | {"name": f"test_{options['name']}", "datasets": {"test_1": options["datasets"]["val"]},
                   "path": {key: weights}}


test_options.__test__ = False  # type: ignore[attr-defined]


class Workshop:
    """A folder to work in, with data in ``data`` and weights in ``weights``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fp, self.dqc = fp_options(), dqc_options()

    def write(self, options: dict[str, Any], name: str | None = None) -> Path:
        path = self.folder / f"{name or options['name']}.yml"
        path.write_text(yaml.safe_dump(options, sort_keys=False))
        return path

    def train(self, options: dict[str, Any], *force: str, flags: Sequence[str] = ()) -> int:
        """Run train.py in this process."""
        return run_train(["-opt", str(self.write(options)), *flags, *(["--force_yml", *force] if force else [])])

    def test(self, options: dict[str, Any], *force: str) -> int:
        """Run test.py in this process."""
        return run_test(["-opt", str(self.write(options)), *(["--force_yml", *force] if force else [])])

    def start(self, script: str, options: dict[str, Any], *force: str, flags: Sequence[str] = (), processes: int = 1,
              environment: dict[str, str] | None = None, before: Callable[[], None] | None = None,
              ) -> subprocess.Popen[str]:
        """Start train.py or test.py (or another script) as a program, under torchrun if it shall be several."""
        python = [sys.executable]
        if processes > 1:
            python += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--rdzv-backend", "c10d",
                       "--rdzv-endpoint", "localhost:0"]
            flags = [*flags, "--launcher", "pytorch"]
        path = script if Path(script).is_absolute() else str(REPOSITORY / script)
        command = [*python, path, "-opt", str(self.write(options)), *flags, *(["--force_yml", *force] if force else [])]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **(environment or {})}
        return subprocess.Popen(command, cwd=self.folder, env=variables, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, preexec_fn=before)

    def run(self, script: str, options: dict[str, Any], *force: str, **settings: Any) -> tuple[int, str]:
        """Run a program to its end; return exit code and standard error."""
        process = self.start(script, options, *force, **settings)
        _, errors = process.communicate(timeout=300)
        return process.returncode, errors

    def experiment(self, name: str) -> Path:
        return self.folder / "experiments" / name

    def network(self, name: str, label: str, tag: int | str = "latest") -> dict[str, Any]:
        return load(self.experiment(name) / "models" / f"net_{label}_{tag}.pth")

    def state(self, name: str, iteration: int) -> dict[str, Any]:
        return load(self.experiment(name) / "training_states" / f"{iteration}.state")

    def losses(self, name: str) -> dict[int, str]:
        """Iteration -> rate and losses as logged; of an iteration that was run twice the last."""
        text = (self.experiment(name) / f"train_{name}.log").read_text()
        found = re.findall(r"iteration (\d+)/\d+, (lr .*?), [\d.]+ s/it", text)
        return {int(number): line for number, line in found}

    def wait_for_iteration(self, process: subprocess.Popen[str], name: str, iteration: int) -> None:
        """Wait until a started training has logged an iteration."""
        log = self.experiment(name) / f"train_{name}.log"
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if log.is_file() and re.search(rf"iteration {iteration}/", log.read_text()):
                return
            time.sleep(0.005)
        raise AssertionError(f"iteration {iteration} was not reached: {process.communicate()}")


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def same(left: Any, right: Any) -> bool:
    """Whether two nested containers of tensors are equal to the bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) or (left != left and right != right)  # NaN


def close(left: Any, right: Any, relative: float) -> bool:
    """Whether two nested containers agree; tensors by the largest difference over the largest value."""
    if isinstance(left, torch.Tensor):
        scale = right.abs().max().double().clamp_min(1e-30)
        return bool((left.double() - right.double()).abs().max() <= relative * scale)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key], relative) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(close(x, y, relative) for x, y in zip(left, right, strict=True))
    return bool(left == right) or abs(left - right) <= relative * max(abs(left), abs(right))


def error_lines(text: str) -> list[str]:
    """Lines of standard error that belong to no log."""
    log_line = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING): ")
    return [line for line in text.splitlines() if not log_line.match(line)]


@pytest.fixture(scope="session")
def workshop_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    make_pairs(folder / "data" / "train", 3, 1)
    make_pairs(folder / "data" / "val", 3, 2, 24, 28)
    (folder / "weights").mkdir()
    make_weights(folder / "weights" / "fp.pth")
    return folder


@pytest.fixture
def workshop(workshop_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A workshop of the test's own, which is also the working directory."""
    import shutil

    shutil.copytree(workshop_data, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Workshop(tmp_path)
