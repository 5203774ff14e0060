"""Calibration of whole models."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import calibrate, check_bounds, named_quantizers, set_state
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State

OBSERVERS = ["minmax", "percentile", "dobi"]


def bounds(model: nn.Module) -> list[torch.Tensor]:
    return [bound.detach().clone() for _, quantizer in named_quantizers(model) for bound in quantizer.parameters()]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_one_batch_or_several(prepared_perceptron, observer: str) -> None:
    model, x = prepared_perceptron(observer=observer), torch.randn(64, 6)
    calibrate(model, [x])
    once = bounds(model)
    assert all(torch.isfinite(bound).all() for bound in once)
    calibrate(model, x.split(10))
    torch.testing.assert_close(bounds(model), once, rtol=1e-6, atol=1e-7)
    for _, quantizer in named_quantizers(model):
        assert quantizer.state is State.QUANTIZE
        assert quantizer.watcher is None


def test_statistics_are_those_of_the_full_precision_network(perceptron, prepared_perceptron) -> None:
    x = torch.randn(64, 6)
    hidden = perceptron.act(perceptron.fc1(x))
    model = prepared_perceptron(bits=2)
    calibrate(model, [x])
    quantizer = model.fc2.activation_quantizer
    torch.testing.assert_close([quantizer.lower_bound[0], quantizer.upper_bound[0]], [hidden.min(), hidden.max()])


def test_progress_counts_forwards(prepared_perceptron) -> None:
    model, calls = prepared_perceptron(observer="dobi"), []
    calibrate(model, torch.randn(6, 6).split(2), on_progress=lambda *call: calls.append(call))
    assert calls == [(number, 9) for number in range(1, 10)]
    calls.clear()
    calibrate(model, [torch.randn(6, 6)], on_progress=lambda *call: calls.append(call))
    assert calls == [(1, 1)]


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(5 * self.layer(x))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_module_that_runs_twice_is_calibrated_on_both_inputs(observer: str) -> None:
    torch.manual_seed(0)
    model = prepare(_Twice(), QuantPlan.parse([{"layer": {"activation": {"bits": 3, "observer": observer}}}]))
    x, calls = torch.randn(16, 4), []
    calibrate(model, [x], on_progress=lambda *call: calls.append(call))
    once = bounds(model)
    calibrate(model, x.split(8))
    torch.testing.assert_close(bounds(model), once)
    assert calls[-1][0] == calls[-1][1] == 1 + {"minmax": 1, "percentile": 2, "dobi": 3}[observer]


def test_parts_of_a_split_layer_start_equal(perceptron) -> None:
    part = {"bits": 4, "observer": "dobi"}
    model = prepare(perceptron, QuantPlan.parse([{"fc1": {"split_out": 2, "weight": part, "activation": part}}]))
    calibrate(model, [torch.randn(8, 6)])
    first, second = model.fc1.parts
    assert torch.equal(first.activation_quantizer.lower_bound, second.activation_quantizer.lower_bound)
    assert not torch.equal(first.weight_quantizer.lower_bound, second.weight_quantizer.lower_bound)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_no_data_is_an_error_that_names_the_layer(perceptron, prepared_perceptron, observer: str, batches: int) -> None:
    model = prepared_perceptron(observer=observer)
    with pytest.raises(UserError, match="'fc2.activation_quantizer' saw no data"):
        calibrate(model, torch.randn(4, 6).chunk(batches), forward=lambda batch: model.fc1(batch))


def test_no_batches(prepared_perceptron) -> None:
    with pytest.raises(UserError, match="saw no data"):
        calibrate(prepared_perceptron(), [])


@pytest.mark.parametrize("observer", OBSERVERS)
def test_constant_tensor(prepared_perceptron, observer: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x = prepared_perceptron(observer=observer), torch.ones(4, 6)
    with pytest.raises(UserError, match="'fc1.activation_quantizer' saw a constant tensor.*'none'"):
        calibrate(model, [x])
    with caplog.at_level(logging.WARNING, "basicsr_quant"):
        calibrate(model, [x], allow_degenerate=True)
    assert "'fc1.activation_quantizer' saw a constant tensor" in caplog.text


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_nan_and_infinity(prepared_perceptron, observer: str, bad: float) -> None:
    model, x = prepared_perceptron(observer=observer), torch.randn(8, 6)
    x[5, 2] = bad
    for batches in ([x], x.split(2)):
        with pytest.raises(UserError, match="'fc1.activation_quantizer' are not finite"):
            calibrate(model, batches)


def test_crossed_bounds_of_a_checkpoint(prepared_perceptron, caplog: pytest.LogCaptureFixture) -> None:
    model = prepared_perceptron()
    with pytest.raises(UserError, match="'file': the bounds of 'fc1.weight_quantizer' are not finite"):
        check_bounds(model, "'file'")
    calibrate(model, [torch.randn(4, 6)])
    quantizer = model.fc1.weight_quantizer
    quantizer.set_bounds(quantizer.upper_bound.clone(), quantizer.lower_bound.clone())
    with pytest.raises(UserError, match="'fc1.weight_quantizer' are crossed"):
        check_bounds(model, "'file'")
    check_bounds(model, "'file'", allow_degenerate=True)
    assert "are crossed" in caplog.text


def test_state_off_is_full_precision(perceptron, prepared_perceptron) -> None:
    x = torch.randn(3, 6)
    wanted = perceptron(x)
    model = prepared_perceptron(bits=2)
    calibrate(model, [x])
    assert not torch.equal(model(x), wanted)
    set_state(model, State.OFF)
    assert torch.equal(model(x), wanted)


def test_observer_arguments_that_do_not_suit() -> None:
    with pytest.raises(UserError, match="'fc1'.*activation:observer dobi\\(searching=x\\)"):
        QuantPlan.parse([{"fc1": {"activation": {"bits": 4, "observer": {"type": "dobi", "searching": "x"}}}}])


def test_per_channel_weights(perceptron) -> None:
    plan = QuantPlan.parse([{"fc1": {"weight": {"bits": 4, "per": "channel", "grid": "int_zero_point"}}}])
    model = prepare(perceptron, plan)
    calibrate(model, [torch.randn(4, 6)])
    quantizer, weight = model.fc1.weight_quantizer, model.fc1.weight
    assert quantizer.lower_bound.shape == (8, 1)
    assert torch.equal(quantizer.upper_bound[:, 0], weight.amax(1))
    assert max(row.unique().numel() for row in quantizer(weight).detach()) <= 16
