"""The published option files of BI-DiffSR run as they are, but for num_gpu and a budget that suits a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from workshop import error_lines, load, make_set, run_test, run_train

PUBLISHED = Path(__file__).parents[1] / "options" / "published"
RELEASED = Path("experiments/pretrained_models/BI_DiffSR_x4.pth")
BUDGET = ["num_gpu=0", "beta_schedule:num_inference_steps=2", "val:metrics:lpips:pnet_rand=true"]


def test_train_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The weights that training writes have the names of the released ones, and are tested in their place."""
    monkeypatch.chdir(tmp_path)
    make_set(Path("datasets/DF2K"), "{}x4", 2, 40)
    make_set(Path("datasets/benchmark/Set5"), "{}x4", 1, 32)
    make_set(Path("datasets/benchmark/Manga109"), "{}_LRBI_x4", 1, 36)
    for name in ("bi_diffsr_train_x4.yml", "bi_diffsr_test_x4.yml"):
        shutil.copy(PUBLISHED / name, tmp_path)
    assert run_train(["-opt", "bi_diffsr_train_x4.yml", "--force_yml", *BUDGET, "train:total_iter=1",
                      "datasets:train:gt_size=32", "datasets:train:batch_size_per_gpu=1",
                      "datasets:train:num_worker_per_gpu=0", "logger:use_tb_logger=false"]) == 0
    assert not error_lines(capfd.readouterr().err)
    params = load(Path("experiments/train_BI_DiffSR_x4/models/net_g_latest.pth"))["params"]
    keys = json.loads((Path(__file__).parents[1] / "fixtures/bi_diffsr/unet_keys.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in params.items()} == dict(keys)
    RELEASED.parent.mkdir(parents=True)
    torch.save({"params": params}, RELEASED)
    assert run_test(["-opt", "bi_diffsr_test_x4.yml", "--force_yml", *BUDGET]) == 0
    results = json.loads(Path("results/test_BI_DiffSR_x4/metrics.json").read_text())
    assert set(results) == {"Set5", "Manga109"} and set(results["Set5"]["mean"]) == {"psnr", "ssim", "lpips"}
    assert not error_lines(capfd.readouterr().err)
