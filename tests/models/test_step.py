"""The distillation step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.losses.pixel import L1Loss
from basicsr_quant.models.step import DistillationStep
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

LINE = {"0": {"weight": {"bits": 2}, "activation": {"bits": 2}}}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1))


def student(batch: torch.Tensor) -> nn.Module:
    model = prepare(network(), QuantPlan.parse([LINE]))
    calibrate(model, [batch])
    return model


def test_losses_learn_bounds_and_leave_the_teacher_alone() -> None:
    batch, teacher = torch.rand(2, 3, 5, 5), network().requires_grad_(False)
    step = DistillationStep(student(batch), teacher, ["0"], L1Loss(2.0), "once", 3.0, "relative", compiled=False)
    losses = step({"lq": batch})
    assert set(losses) == {"pixel", "feature"}
    sum(losses.values()).backward()
    assert all(value.grad is not None for name, value in step.named_parameters() if name.endswith("_bound"))
    assert not any(value is other for value in step.parameters() for other in teacher.parameters())
    assert not any(module._forward_hooks for module in [*step.modules(), *teacher.modules()])


def test_weights_scale_the_terms() -> None:
    batch = torch.rand(2, 3, 5, 5)
    model = student(batch)
    one, three = (DistillationStep(model, network(), ["0"], L1Loss(weight), "once", weight, "relative",
                                   False)({"lq": batch})
                  for weight in (1.0, 3.0))
    for name in one:
        torch.testing.assert_close(three[name], 3 * one[name])


def test_no_taps_no_feature_term() -> None:
    batch = torch.rand(1, 3, 4, 4)
    step = DistillationStep(student(batch), network(), (), L1Loss(), "once", 0.0, "relative", False)
    assert set(step({"lq": batch})) == {"pixel"}


def test_batch_takes_the_network_s_precision() -> None:
    batch = torch.rand(1, 3, 4, 4)
    step = DistillationStep(student(batch).double(), network().double(), ["0"], L1Loss(), "once", 1.0, "relative",
                            False)
    assert step({"lq": batch})["pixel"].dtype == torch.float64


def test_compiled_steps_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend="eager"))
    model = student(torch.rand(2, 3, 5, 5))
    plain, compiled = (DistillationStep(model, network(), ["0"], L1Loss(), "once", 1.0, "relative", flag)
                       for flag in (False, True))
    for seed in range(3):
        batch = {"lq": torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))}
        wanted, found = plain(batch), compiled(batch)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name])
        sum(found.values()).backward()


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_intercepted_networks_are_not_compiled() -> None:
    plan = QuantPlan.parse([{"op:matmul": {"lhs": {"bits": 4}}}])
    model = prepare(_Product(), plan, torch.rand(1, 3, 4, 4))
    with pytest.raises(UserError, match="compile=false"):
        DistillationStep(model, _Product(), (), L1Loss(), "once", 0.0, "relative", compiled=True)
