"""Runs of a tiny network, tested and analysed by the commands, for the tests of the page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from workshop import Workshop, dqc_options, test_options

from basicsr_quant.cli.main import main
from basicsr_quant.data.calibration import CalibrationSet, save_calibration

CALIBRATION = "calibration.safetensors"
RUNS = {"bicubic": ["quant:upscale_only=bicubic"], "FP": ["quant:fp_test=true"], "bits3": ["bit=3"], "bits8": ["bit=8"]}
IMAGES = ("im0", "im1", "im2")


def options_of_test() -> dict[str, Any]:
    """Full-precision weights that are quantized after calibration."""
    options = test_options(dqc_options(), "weights/fp.pth")
    options["pathFP"] = {"pretrain_network_FP": "weights/fp.pth"}
    options["val"]["save_img"] = True
    return options | {"cali_data": CALIBRATION}


@pytest.fixture(scope="session")
def tested_folder(workshop_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop's folder with a training and the results of four runs, one analysed; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("page") / "work"
    shutil.copytree(workshop_data, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = Workshop(folder)
        patches = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        save_calibration(CALIBRATION, CalibrationSet(patches, None, [], [], ""))
        assert made.train(made.dqc, "logger:use_tb_logger=true") == 0
        for name, settings in RUNS.items():
            assert made.test(options_of_test(), f"name={name}", *settings) == 0
        assert main(["analyse", "-opt", "results/bits3/test_bits3.yml", "--images", "2", "--size", "8"]) == 0
    return folder
