"""The published option files run as they are, but for num_gpu and a budget that suits a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from workshop import error_lines, load, make_set, run_test, run_train

from basicsr_quant.archs.build import build_network
from basicsr_quant.archs.published.swinir import export_swinir

PUBLISHED = Path(__file__).parents[1] / "options" / "published"
WEIGHTS = "experiments/pretrained_models/SwinIR/002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4.pth"


@pytest.fixture
def published_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as the published files expect it."""
    monkeypatch.chdir(tmp_path)
    for name in ("train_x4.yml", "test_x4.yml"):
        shutil.copy(PUBLISHED / name, tmp_path)
    make_set(Path("datasets/DF2K"), "{}x4", 2, 72)
    make_set(Path("datasets/benchmark/Set5"), "{}x4", 1, 64)
    make_set(Path("datasets/benchmark/Manga109"), "{}_LRBI_x4", 1, 64)
    torch.manual_seed(1)
    Path(WEIGHTS).parent.mkdir(parents=True)
    torch.save({"params": export_swinir(build_network("SwinIR", {"upscale": 4}).state_dict())}, WEIGHTS)
    Path("keydata").mkdir()
    patches = {"lq": torch.rand(2, 3, 24, 24), "gt": torch.rand(2, 3, 96, 96), "lq_path": ["a", "b"],
               "gt_path": ["a", "b"]}
    torch.save(patches, "keydata/cali_data_x4.pth")
    return tmp_path


def test_train_and_test(published_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    budget = ["train:total_iter=1", "datasets:train:gt_size=32", "datasets:train:batch_size_per_gpu=1"]
    assert run_train(["-opt", "train_x4.yml", "--force_yml", "num_gpu=0", "bit=4", *budget]) == 0
    weights = published_place / "experiments/2DQuant_train_x4/models/net_Q_latest.pth"
    keys = json.loads((Path(__file__).parents[1] / "fixtures/2dquant/net_Q_keys_x4.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in load(weights)["params"].items()} == keys
    assert not error_lines(capfd.readouterr().err)
    assert run_test(["-opt", "test_x4.yml", "--force_yml", "num_gpu=0", "bit=4",
                     f"path:pretrain_network_Q={weights}"]) == 0
    results = published_place / "results/2DQuant_test_x4/metrics.json"
    assert set(json.loads(results.read_text())) == {"Set5", "Manga109"}


def test_a_full_precision_file_as_the_published_test_file_has_it(published_place: Path) -> None:
    assert run_test(["-opt", "test_x4.yml", "--force_yml", "num_gpu=0"]) == 0
    assert (published_place / "results/2DQuant_test_x4/metrics.json").is_file()
