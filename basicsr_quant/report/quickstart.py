"""The quickstart: the main job from photographs to a table, on data that comes with scikit-image."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from basicsr_quant.data.bicubic import downscale
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.images import Image, read_image, write_image
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.accounting import Account, account
from basicsr_quant.registry import MODELS

logger = logging.getLogger("basicsr_quant")

SCALE = 4
TEST_IMAGES = ("astronaut", "chelsea", "coffee", "rocket")
DATA = Path("datasets/quickstart")
RESULTS = Path("results/quickstart")
CALIBRATION = "keydata/quickstart_x4.safetensors"
TRAIN_OPTIONS = "options/train/train_2DQuant_quickstart.yml"
TEST_OPTIONS = "options/test/test_2DQuant_quickstart.yml"
MINMAX = ("quant:weight_observer=minmax", "quant:activation_observer=minmax", "quant:one_sided_observer=null")
CROP = 96
PROTOCOL = "PSNR and SSIM on Y, border 4, mean over the photographs"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        method: Name.
        psnr: In dB.
        ssim: In [0, 1].
        bytes: Of parameters: codes packed, bounds, the rest in float32, counted and not measured.
        seconds: Of the commands that this row needed.
    """

    method: str
    psnr: float
    ssim: float
    bytes: int
    seconds: float


def make_data(test_images: Sequence[str] = TEST_IMAGES) -> None:
    """Write HR and LR images of the sample photographs; the stereo pair is for calibration, the others for tests."""
    import skimage.data

    left, right, _ = skimage.data.stereo_motorcycle()
    groups = {"train": {"motorcycle_left": left, "motorcycle_right": right},
              "test": {name: getattr(skimage.data, name)() for name in test_images}}
    for group, images in groups.items():
        for name, image in images.items():
            image = np.ascontiguousarray(image[..., :3])
            write_image(DATA / group / "HR" / f"{name}.png", image)
            write_image(DATA / group / f"LR_bicubic/X{SCALE}" / f"{name}x{SCALE}.png", downscale(image, SCALE))


def run(command: Sequence[str]) -> float:
    """Show and run ``python COMMAND``; return its seconds.

    Raises:
        UserError: It failed; what it printed says why.
    """
    logger.info("$ python %s", shlex.join(command))
    began = time.monotonic()
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        raise UserError(f"quickstart: 'python {shlex.join(command)}' failed (exit code {code}); it said why above")
    return time.monotonic() - began


def evaluate(name: str, overrides: Sequence[str]) -> tuple[dict[str, float], float]:
    """Run ``test.py`` with overrides; return mean metrics and seconds."""
    settings = [f"name={name}", f"path:results_root={RESULTS}", *overrides]
    seconds = run(["test.py", "-opt", TEST_OPTIONS, "--force_yml", *settings])
    metrics = json.loads((RESULTS / name / "metrics.json").read_text())
    return metrics["photographs"]["mean"], seconds


def count() -> Account:
    """Count the quantized network on the meta device."""
    import torch

    options = load_options(TEST_OPTIONS, is_train=False)
    with torch.device("meta"):
        return account(MODELS.get(options.model_type).skeleton(options), (1, 3, 64, 64))


def quickstart(extra: Sequence[str] = (), test_images: Sequence[str] = TEST_IMAGES) -> list[Row]:
    """Make data, calibrate, learn, test, and write table, images and ``results/quickstart/report.json``.

    Args:
        extra: Settings for every command, ``key=value``.
        test_images: Names of photographs in ``skimage.data``.

    Returns:
        The table's rows.
    """
    for needed in ("train.py", TRAIN_OPTIONS, TEST_OPTIONS):
        if not Path(needed).is_file():
            raise UserError(f"'{needed}' is not here; run the quickstart from the root of the repository")
    logger.info("1/4 sample photographs and their bicubic LR images")
    make_data(test_images)
    run(["-m", "basicsr_quant", "calibration-data", "-opt", TRAIN_OPTIONS, "--force_yml",
         f"cali_data_save_path={CALIBRATION}", *extra])
    logger.info("2/4 2DQuant at 3 bits: bound search, then a short distillation")
    trained = run(["train.py", "-opt", TRAIN_OPTIONS, *(["--force_yml", *extra] if extra else [])])
    logger.info("3/4 tests")
    weights = "experiments/quickstart_2DQuant_x4_bit3/models/net_Q_latest.pth"
    runs = {
        "bicubic": ("quant:upscale_only=bicubic",),
        "FP": ("quant:fp_test=true",),
        "MinMax": MINMAX,
        "DOBI": (),
        "2DQuant": (f"path:pretrain_network_Q={weights}",),
    }
    counted = count()
    sizes = {"bicubic": 0, "FP": counted.float_bytes}
    rows = []
    for method, overrides in runs.items():
        metrics, seconds = evaluate(method, [*overrides, *extra])
        seconds += trained if method == "2DQuant" else 0
        rows.append(Row(method, metrics["psnr"], metrics["ssim"], sizes.get(method, counted.packed_bytes), seconds))
    logger.info("4/4 report")
    for name in test_images:
        write_image(RESULTS / f"{name}_crops.png", side_by_side(name, list(runs)))
    report = {"protocol": PROTOCOL, "bits": 3, "rows": [asdict(row) for row in rows]}
    write_text(RESULTS / "report.json", json.dumps(report, indent=1))
    return rows


def side_by_side(name: str, methods: Sequence[str]) -> Image:
    """Return the centre crop of LR (enlarged pixels), every method and HR next to each other, with captions."""
    reference = read_image(DATA / "test/HR" / f"{name}.png")
    small = read_image(DATA / f"test/LR_bicubic/X{SCALE}" / f"{name}x{SCALE}.png")
    pixels = small.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    panels = {"LR": pixels}
    for method in methods:
        panels[method] = read_image(RESULTS / method / "visualization/photographs" / f"{name}_{method}.png")
    panels["HR"] = reference
    top, left = (pixels.shape[0] - CROP) // 2, (pixels.shape[1] - CROP) // 2
    crops = [_panel(image[top:top + CROP, left:left + CROP], label) for label, image in panels.items()]
    return np.concatenate(crops, axis=1)


def _panel(crop: Image, label: str) -> Image:
    enlarged = crop.repeat(2, axis=0).repeat(2, axis=1)
    caption = np.full((24, enlarged.shape[1], 3), 255, np.uint8)
    cv2.putText(caption, label, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([caption, enlarged], axis=0)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'method':8}  {'PSNR':>7}  {'SSIM':>6}  {'bytes':>9}  {'seconds':>7}"]
    lines += [f"{row.method:8}  {row.psnr:7.3f}  {row.ssim:6.4f}  {row.bytes:9,}  {row.seconds:7.1f}" for row in rows]
    lines += ["", f"{PROTOCOL}. Execution is simulated: values are rounded, products run in float32.",
              "Bytes are counted: codes packed, bounds, the rest in float32.",
              "Seconds are those of the commands, start included."]
    return "\n".join(lines)
