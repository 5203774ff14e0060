"""Gradients that add up over an epoch; selections of what learns."""

from __future__ import annotations

import copy

import torch
from torch import nn

from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.gradient_memory import EpochGradients
from basicsr_quant.quant.let_calibration import calibrate_scales_first
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.selection import bounds, transformations, transformations_and_bounds
from basicsr_quant.registry import SELECTORS

GRADIENTS = [torch.tensor([float(value), -2.0 * value]) for value in (1, 4, -2, 3, 5)]


def steps(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def test_the_sum_of_an_epoch() -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    plain, summed = torch.optim.Adam([one], lr=0.1), torch.optim.Adam([other], lr=0.1)
    EpochGradients(summed, 2)
    steps(other, summed, GRADIENTS)
    steps(one, plain, [GRADIENTS[0], GRADIENTS[0] + GRADIENTS[1], GRADIENTS[2], GRADIENTS[2] + GRADIENTS[3],
                       GRADIENTS[4]])
    assert torch.equal(one, other)


def test_sums_are_part_of_the_state() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    EpochGradients(optimizer, 3)
    steps(parameter, optimizer, GRADIENTS[:2])
    resumed = nn.Parameter(parameter.detach().clone())
    second = torch.optim.Adam([resumed], lr=0.1)
    EpochGradients(second, 3)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(parameter, optimizer, GRADIENTS[2:])
    steps(resumed, second, GRADIENTS[2:])
    assert torch.equal(parameter, resumed)


def test_selections() -> None:
    torch.manual_seed(0)
    recipe = {"weight": {"bits": 8, "per": "channel"}, "activation": {"bits": 8}, "let": {}}
    model = prepare(nn.Sequential(nn.Linear(4, 3)), QuantPlan.parse([{"0": recipe}]))
    calibrate_scales_first(model, [torch.randn(5, 4)])
    calibrate(model, [torch.randn(5, 4)])
    assert SELECTORS.get("bounds") is bounds and SELECTORS.get("transformations") is transformations
    for select, count in ((bounds, 4), (transformations, 2)):
        chosen = select(model, 0.1)
        assert len(chosen.parameters) == len(chosen.units) == count and chosen.keep is not None
        assert {id(value) for value in chosen.parameters} == {
            id(value) for value in model.parameters() if value.requires_grad}
        assert select(model, 0).keep is None
        before = [value.detach().clone() for value in chosen.parameters]
        chosen.keep()
        assert all(torch.equal(value, old) for value, old in zip(chosen.parameters, before, strict=True))


def test_both_selections_where_nothing_is_transformed() -> None:
    torch.manual_seed(0)
    model = prepare(nn.Sequential(nn.Linear(4, 3)), QuantPlan.parse([{"0": {"weight": {"bits": 4}}}]))
    calibrate(model, [torch.randn(5, 4)])
    chosen = transformations_and_bounds(model, 0.1)
    assert len(chosen.parameters) == 2 and chosen.keep is not None
    chosen.keep()
