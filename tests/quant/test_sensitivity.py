"""Which layers suffer from few bits, and who gets more: measured alone, allocated at the least sum of errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State
from basicsr_quant.quant.sensitivity import allocate, layer_errors, lower_hull, planned_layers

LINE = {"weight": {"bits": 3, "observer": "minmax"}, "activation": {"bits": 3, "observer": "minmax"}}
CURVES = st.lists(st.floats(0, 1), min_size=3, max_size=3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 3))


def test_planned_layers() -> None:
    plan = QuantPlan.parse([{"2": "none"}, {"*": LINE}])
    assert planned_layers(network(), plan) == {"0": 8 * 27, "4": 3 * 72}


def test_one_layer_at_a_time() -> None:
    """The error of each layer is that of a network in which only this layer is in the plan."""
    batches = [torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    whole = prepare(network(), QuantPlan.parse([{"*": LINE}]))
    calibrate(whole, batches)
    errors = dict(layer_errors(whole, ["0", "2", "4"], batches))
    assert all(quantizer.state is State.QUANTIZE for _, quantizer in named_quantizers(whole))
    for name, error in errors.items():
        alone, plain = prepare(network(), QuantPlan.parse([{name: LINE}])), network()
        calibrate(alone, batches)
        with torch.no_grad():
            changes = torch.cat([alone(batch) - plain(batch) for batch in batches])
        assert error == pytest.approx(changes.double().square().mean().item(), rel=1e-5)
        assert error > 0


def test_states_come_back_after_an_error() -> None:
    whole = prepare(network(), QuantPlan.parse([{"*": LINE}]))
    batches = [torch.rand(1, 3, 9, 9)]
    calibrate(whole, batches)
    with pytest.raises(AttributeError):
        list(layer_errors(whole, ["nothing"], batches))
    assert all(quantizer.state is State.QUANTIZE for _, quantizer in named_quantizers(whole))


def test_lower_hull() -> None:
    assert lower_hull({2: 9.0, 3: 3.0, 4: 1.0}) == [2, 3, 4]
    assert lower_hull({2: 9.0, 3: 8.0, 4: 1.0}) == [2, 4]
    assert lower_hull({2: 1.0, 3: 1.0, 4: 2.0}) == [2]
    assert lower_hull({4: 1.0}) == [4]


@settings(max_examples=60)
@given(curves=st.lists(CURVES, min_size=1, max_size=4), sizes=st.data(), share=st.floats(0, 1))
def test_allocation(curves: list[list[float]], sizes: st.DataObject, share: float) -> None:
    """Within the budget; and no other choice with as many bits has a smaller error."""
    errors = {str(index): dict(zip((2, 3, 4), curve, strict=True)) for index, curve in enumerate(curves)}
    weights = {name: sizes.draw(st.integers(1, 9)) for name in errors}
    least = 2 * sum(weights.values())
    budget = least + int(share * least)
    chosen = allocate(errors, weights, budget)
    used = sum(bits * weights[name] for name, bits in chosen.items())
    assert used <= budget
    total = sum(errors[name][bits] for name, bits in chosen.items())
    if used < budget and any(bits < lower_hull(errors[name])[-1] for name, bits in chosen.items()):
        return  # what is left does not fit the next step
    for other in itertools.product((2, 3, 4), repeat=len(errors)):
        widths = dict(zip(errors, other, strict=True))
        if sum(bits * weights[name] for name, bits in widths.items()) <= used:
            assert total <= sum(errors[name][bits] for name, bits in widths.items()) + 1e-9


def test_too_small_a_budget() -> None:
    with pytest.raises(ValueError, match="take 20 bits, more than 19"):
        allocate({"a": {2: 1.0, 3: 0.5}}, {"a": 10}, 19)
