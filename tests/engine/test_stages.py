"""A training in stages: order, learning rates, checkpoints at the boundary, resuming in any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from workshop import Workshop, error_lines, same

from basicsr_quant.engine.schedules import MultiStepLR
from basicsr_quant.models.base import Stage
from basicsr_quant.models.sr import SRModel

LENGTHS = (4, 6)


class TwoStages:
    """Makes SRModel train twice; the second stage starts from what it saw when it was made, plus a constant."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...] = LENGTHS) -> None:
        self.norms: list[float] = []
        self.parts: list[float] = []
        self.rates: list[float] = []
        plain = SRModel.stage

        def stage(model: SRModel, index: int = 0) -> Stage:
            made = plain(model)
            self.norms.append(float(sum(parameter.detach().double().square().sum()
                                        for parameter in model.network.parameters())))
            with torch.no_grad():
                for parameter in model.network.parameters():
                    parameter.add_(index * 1e-3)
            made.name = f"part {index}"
            made.schedule = MultiStepLR([2], 0.5) if index else None
            made.before_step = lambda part: self.begin(made, part)
            return made

        monkeypatch.setattr(SRModel, "stage", stage)
        monkeypatch.setattr(SRModel, "stage_lengths", property(lambda model: lengths))

    def begin(self, stage: Stage, part: float) -> None:
        self.parts.append(part)
        self.rates.append(stage.optimizers[0].param_groups[0]["lr"])


def options_of(workshop: Workshop) -> dict[str, Any]:
    options = workshop.fp
    options["logger"]["save_checkpoint_freq"] = 1
    del options["train"]["scheduler"]
    return options


def forget_after(workshop: Workshop, name: str, iteration: int) -> None:
    """Remove what a run saved after an iteration, as if it had been killed there."""
    for path in workshop.experiment(name).glob("training_states/*.state"):
        if int(path.stem) > iteration:
            path.unlink()


def test_stages_run_in_order(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = TwoStages(monkeypatch)
    assert workshop.train(options_of(workshop)) == 0
    assert stages.parts == [*(i / 4 for i in range(4)), *(i / 6 for i in range(6))]
    assert len(stages.norms) == 2 and stages.norms[0] != stages.norms[1]
    log = (workshop.experiment("fp") / "train_fp.log").read_text()
    assert "stage 'part 0': iterations 1 to 4" in log and "stage 'part 1': iterations 5 to 10" in log
    assert "iteration 6/10, lr 2.000e-03" in log and "iteration 7/10, lr 1.000e-03" in log
    assert workshop.state("fp", 10)["stage_start"] == 4


@pytest.mark.parametrize("iteration", [0, 2, 4, 7, 10])
def test_resume_in_any_stage(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    stages = TwoStages(monkeypatch)
    options = options_of(workshop)
    assert workshop.train(options, "name=reference") == 0
    assert workshop.train(options) == 0
    forget_after(workshop, "fp", iteration)
    stages.norms.clear()
    assert workshop.train(options, flags=["--auto_resume"]) == 0
    assert same(workshop.network("fp", "g", 10), workshop.network("reference", "g", 10))
    assert same(workshop.state("fp", 10)["optimizers"], workshop.state("reference", 10)["optimizers"])


def test_boundary_checkpoint_is_vouched_for(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    TwoStages(monkeypatch)
    options = options_of(workshop)
    assert workshop.train(options) == 0
    boundary = Path(workshop.experiment("fp")) / "models" / "net_g_4.pth"
    boundary.write_bytes(boundary.read_bytes()[:-1])
    forget_after(workshop, "fp", 7)
    assert workshop.train(options, flags=["--auto_resume"]) == 0
    log = (workshop.experiment("fp") / "train_fp.log").read_text()
    assert "net_g_4.pth" in log and "iterations 4 to 4" in log


def test_other_lengths_are_refused(workshop: Workshop, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    options = options_of(workshop)
    with monkeypatch.context() as patch:
        TwoStages(patch)
        assert workshop.train(options) == 0
    forget_after(workshop, "fp", 7)
    TwoStages(monkeypatch, (5, 5))
    assert workshop.train(options, flags=["--auto_resume"]) != 0
    assert "stages end after 5, 10" in error_lines(capsys.readouterr().err)[-1]
