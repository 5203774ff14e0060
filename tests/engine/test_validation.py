"""Validation: the best file, averages over images, names of what is not finite; and where numbers are recorded."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from workshop import Workshop, same, test_options

from basicsr_quant.engine.ema import Ema
from basicsr_quant.engine.evaluation import Results
from basicsr_quant.engine.record import Recorder
from basicsr_quant.models.restoring import _cause
from basicsr_quant.options.load import load_options


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_best_file(workshop: Workshop, better: str) -> None:
    metric = {"type": "calculate_psnr", "crop_border": 2, "better": better}
    workshop.fp["val"] = {"val_freq": 1, "metrics": {"psnr": metric}}
    workshop.fp["logger"]["save_checkpoint_freq"] = 1
    workshop.fp["train"]["optim_g"]["lr"] = 0.05
    assert workshop.train(workshop.fp) == 0
    log = (workshop.experiment("fp") / "train_fp.log").read_text()
    values = {int(i): float(v) for i, v in re.findall(r"validation val, iteration (\d+): psnr ([-\d.]+)", log)}
    chosen = (max if better == "higher" else min)(values, key=lambda iteration: values[iteration])
    assert workshop.state("fp", 4)["best"]["iteration"] == chosen
    assert same(workshop.network("fp", "g", "best"), workshop.network("fp", "g", chosen))


def test_best_file_is_the_averaged_network(workshop: Workshop) -> None:
    """What validation reported is what test.py finds in ``params_ema`` of the best file."""
    assert workshop.train(workshop.fp) == 0
    tested = test_options(workshop.fp, "experiments/fp/models/net_g_best.pth")
    tested["path"]["param_key_g"] = "params_ema"
    assert workshop.test(tested) == 0
    found = json.loads((workshop.folder / "results/test_fp/metrics.json").read_text())["val"]["mean"]["psnr"]
    assert found == workshop.state("fp", 4)["best"]["value"]


def test_images_of_validation(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "val:save_img=true") == 0
    names = {path.name for path in (workshop.experiment("fp") / "visualization/val").iterdir()}
    assert names == {f"im{image}_{iteration}.png" for image in range(3) for iteration in (3, 4)}


def test_results(tmp_path: Path) -> None:
    results = Results({"a": {"psnr": 1.0, "ssim": 0.25}, "b": {"psnr": 2.0, "ssim": 0.5}}, 2, 0.1)
    assert results.mean == {"psnr": 1.5, "ssim": 0.375}
    results.write_csv(tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text() == (
        "image,psnr,ssim\na,1.000000,0.250000\nb,2.000000,0.500000\nAVERAGE,1.500000,0.375000\n")
    assert Results({}, 3, 0.1).mean == {}


def test_weight_that_is_not_finite_is_named() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert "activations overflow" in _cause(network)
    nn.init.constant_(network[1].bias, torch.nan)
    assert "weight '1.bias' holds NaN" in _cause(network)


def test_ema_copies_buffers_and_leaves_the_source_alone() -> None:
    network = nn.BatchNorm1d(2)
    ema = Ema(network, 0.9, "g")
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(7.0)
    ema.update()
    assert ema.network.weight.tolist() == pytest.approx([1.2, 1.2]) and ema.network.running_mean.tolist() == [7.0, 7.0]
    assert network.weight.tolist() == [3.0, 3.0] and not any(p.requires_grad for p in ema.network.parameters())


class _Run:
    def __init__(self, broken: bool) -> None:
        self.broken, self.lines, self.finished = broken, [], False

    def log(self, values: dict[str, float], step: int) -> None:
        if self.broken:
            raise OSError("the network is down")
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished = True


def recorder(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, **wandb: Any) -> Recorder:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**wandb))
    monkeypatch.setattr(logging.getLogger("basicsr_quant"), "propagate", True)
    workshop.fp["logger"]["wandb"] = {"project": "some"}
    return Recorder(load_options(workshop.write(workshop.fp)), is_main=True)


def test_wandb_gets_scalars(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _Run(broken=False)
    log = recorder(workshop, monkeypatch, api=SimpleNamespace(api_key="x"), init=lambda **settings: run)
    log.scalars({"lr": 0.5}, 3)
    log.close()
    assert run.lines == [(3, {"lr": 0.5})] and run.finished


def test_wandb_that_breaks_is_given_up_with_one_warning(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[tuple[object, ...]] = []
    monkeypatch.setattr(logging.getLogger("basicsr_quant"), "warning", lambda *arguments: warnings.append(arguments))
    log = recorder(workshop, monkeypatch, api=SimpleNamespace(api_key="x"), init=lambda **settings: _Run(broken=True))
    for iteration in range(3):
        log.scalars({"lr": 0.5}, iteration)
    log.close()
    ((text, reason),) = warnings
    assert "Weights & Biases ends here" in str(text) and str(reason) == "the network is down"


def test_wandb_without_a_login(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    recorder(workshop, monkeypatch, api=SimpleNamespace(api_key=None), init=None).scalars({"lr": 1.0}, 1)
    assert "nobody is logged in" in caplog.text


def test_only_the_main_process_records(workshop: Workshop) -> None:
    options = load_options(workshop.write(workshop.fp), ["logger:use_tb_logger=true"])
    Recorder(options, is_main=False).scalars({"lr": 1}, 1)
    assert not (workshop.folder / "tb_logger").exists()
