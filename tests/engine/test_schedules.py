"""Learning rates against torch's schedulers, and by their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from basicsr_quant.engine import schedules
from basicsr_quant.engine.schedules import learning_rate
from basicsr_quant.models.base import LearningRateSchedule


def reference(make_scheduler: object, base: float, length: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = make_scheduler(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(length):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(schedule: LearningRateSchedule, base: float, length: int, warmup: int = -1) -> list[float]:
    return [learning_rate(schedule, base, iteration, warmup) for iteration in range(1, length + 1)]


@pytest.mark.parametrize("milestones", [[3, 7], [5, 5, 6], [1], [], [100]])
def test_multi_step(milestones: list[int]) -> None:
    theirs = reference(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones, 0.3), 0.02, 12)
    assert ours(schedules.MultiStepLR(milestones, 0.3), 0.02, 12) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("period", "low"), [(10, 0.0), (10, 1e-4), (7, 1e-5)])
def test_cosine(period: int, low: float) -> None:
    theirs = reference(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, period, low), 0.02, period)
    assert ours(schedules.CosineAnnealingLR(period, low), 0.02, period) == pytest.approx(theirs, rel=1e-9)


@given(st.lists(st.integers(1, 60), max_size=6), st.floats(0.05, 1.0), st.integers(1, 80))
def test_multi_step_counts_the_milestones_passed(milestones: list[int], gamma: float, iteration: int) -> None:
    passed = sum(milestone < iteration for milestone in milestones)
    rate = learning_rate(schedules.MultiStepLR(milestones, gamma), 0.5, iteration, -1)
    assert rate == pytest.approx(0.5 * gamma**passed)


@given(st.integers(1, 50), st.floats(1e-6, 0.1))
def test_cosine_falls_from_base_to_minimum(period: int, low: float) -> None:
    rates = ours(schedules.CosineAnnealingLR(period, low), 0.2, period + 1)
    assert rates[0] == pytest.approx(0.2) and rates[-1] == pytest.approx(low)
    assert rates == sorted(rates, reverse=True)


def test_cosine_restarts() -> None:
    schedule = schedules.CosineAnnealingRestartLR([4, 6], [1, 0.5], 0.0)
    factors = [schedule.factor(step, 1.0) for step in range(11)]
    assert factors[0] == 1 and factors[4] == pytest.approx(0, abs=1e-12)
    assert factors[5] == pytest.approx(0.5 * (1 + math.cos(math.pi / 6)) / 2)
    assert factors[10] == pytest.approx(0, abs=1e-12)
    assert schedule.factor(11, 1.0) >= 0  # past the last period it goes on


def test_multi_step_restarts() -> None:
    schedule = schedules.MultiStepRestartLR([2, 7], 0.1, [0, 5], [1, 0.5])
    factors = [schedule.factor(step, 1.0) for step in range(9)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.05, 0.05])


@pytest.mark.parametrize("build", [
    lambda: schedules.MultiStepRestartLR([1], 0.1, [0, 5], [1]),
    lambda: schedules.CosineAnnealingRestartLR([1, 2], [1]),
])
def test_lengths_must_agree(build: object) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        build()  # type: ignore[operator]


def test_warm_up_is_linear() -> None:
    rates = ours(schedules.Constant(), 0.8, 6, warmup=4)
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
