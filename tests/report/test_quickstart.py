"""The quickstart in small: its promise is an order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from basicsr_quant.errors import UserError
from basicsr_quant.io.images import read_image
from basicsr_quant.report.quickstart import quickstart, table

WEIGHTS = "experiments/pretrained_models/SwinIR_light_x4_BSDS400.pth"
MARGIN = 0.05


@pytest.fixture
def checkout(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("train.py", "test.py"):
        shutil.copy(repository / name, tmp_path)
    shutil.copytree(repository / "options", tmp_path / "options")
    (tmp_path / WEIGHTS).parent.mkdir(parents=True)
    shutil.copy(repository / WEIGHTS, tmp_path / WEIGHTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def check_order(rows: list) -> None:
    psnr = {row.method: row.psnr for row in rows}
    ordered = ["FP", "2DQuant", "DOBI", "MinMax"]
    for better, worse in zip(ordered, ordered[1:], strict=False):
        assert psnr[better] >= psnr[worse] + MARGIN, psnr


def test_thirty_steps_on_two_photographs(checkout: Path) -> None:
    rows = quickstart(["num_gpu=0", "train:total_iter=30"], ["chelsea", "coffee"])
    check_order(rows)
    assert [row.method for row in rows] == ["bicubic", "FP", "MinMax", "DOBI", "2DQuant"]
    assert [row.bytes for row in rows] == [0, 3_718_512, 1_215_984, 1_215_984, 1_215_984]
    text = table(rows)
    assert all(row.method in text and f"{row.psnr:.3f}" in text for row in rows)
    report = json.loads((checkout / "results/quickstart/report.json").read_text())
    assert [row["psnr"] for row in report["rows"]] == [row.psnr for row in rows]
    crops = read_image(checkout / "results/quickstart/chelsea_crops.png")
    assert crops.shape == (24 + 192, 7 * 192, 3)


@pytest.mark.slow
def test_whole(checkout: Path) -> None:
    check_order(quickstart(["num_gpu=0"]))


def test_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="root of the repository"):
        quickstart()
