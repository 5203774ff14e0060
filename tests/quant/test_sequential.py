"""Calibration in order of execution."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State
from basicsr_quant.quant.sequential import calibrate_in_order

OBSERVERS = ["minmax", "percentile", "dobi"]


def bounds(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: bound.detach().clone() for name, bound in model.named_parameters() if "_bound" in name}


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Between its extremes, written out."""
    low, high = x.min(), x.max()
    step = (high - low) / (2**bits - 1)
    return torch.round((x.clamp(low, high) - low) / step) * step + low


@pytest.mark.parametrize("batches", [1, 4])
def test_two_layers_written_out(perceptron: nn.Module, prepared_perceptron, batches: int) -> None:
    network, x = copy.deepcopy(perceptron), torch.randn(64, 6)
    model = prepared_perceptron(bits=2)
    calibrate_in_order(model, x.chunk(batches))
    hidden = network.act(nn.functional.linear(rounded(x, 2), rounded(network.fc1.weight, 2), network.fc1.bias))
    quantizer = model.fc2.activation_quantizer
    torch.testing.assert_close([quantizer.lower_bound[0], quantizer.upper_bound[0]], [hidden.min(), hidden.max()])
    output = nn.functional.linear(rounded(hidden, 2), rounded(network.fc2.weight, 2), network.fc2.bias)
    torch.testing.assert_close(model(x), output)
    sequential = bounds(model)
    calibrate(model, x.chunk(batches))
    parallel = bounds(model)
    differ = {name.rpartition(".")[0] for name in parallel if not torch.equal(parallel[name], sequential[name])}
    assert differ == {"fc2.activation_quantizer"}
    assert all(quantizer.state is State.QUANTIZE and quantizer.watcher is None
               for _, quantizer in named_quantizers(model))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_one_batch_or_several_one_pass_or_groups(prepared_swinir, observer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = prepared_swinir(3, observer), torch.rand(4, 3, 16, 16, generator=generator)
    quantizers = sum(quantizer.followed is None and "weight" not in name for name, quantizer in named_quantizers(model))
    calibrate_in_order(model, [x])
    once = bounds(model)
    for groups, batches in ((quantizers, [x]), (10 * quantizers, [x])):
        calibrate_in_order(model, batches, groups=groups)
        torch.testing.assert_close(bounds(model), once, rtol=1e-5, atol=1e-5)
    calibrate_in_order(model, [x], groups=4)
    grouped = bounds(model)
    assert any(not torch.equal(grouped[name], once[name]) for name in once)
    calibrate_in_order(model, x.split(2), groups=4)
    torch.testing.assert_close(bounds(model), grouped, rtol=1e-3, atol=1e-3)
    calibrate_in_order(model, x.split(2), groups=1)
    one_group = bounds(model)
    assert all(torch.equal(one_group[name], once[name]) for name in once if "weight_quantizer" in name)


def test_a_group_ends_its_forward(prepared_swinir) -> None:
    model, calls = prepared_swinir(), []
    for name in ("layers.0", "layers.1", "conv_after_body"):
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: calls.append(name))
    reports: list[tuple[int, int]] = []
    calibrate_in_order(model, torch.rand(4, 3, 16, 16).split(2), groups=2,
                       on_progress=lambda *report: reports.append(report))
    assert calls == ["layers.0", "layers.1", "conv_after_body"] + 6 * ["layers.0"]
    assert reports == [(done, 12) for done in range(1, 13)]


def test_progress_of_one_pass(prepared_perceptron) -> None:
    reports: list[tuple[int, int]] = []
    calibrate_in_order(prepared_perceptron(), [torch.randn(8, 6)], on_progress=lambda *report: reports.append(report))
    assert reports == [(1, 1)]


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(5 * self.layer(x))


@pytest.mark.parametrize("groups", [0, 1])
@pytest.mark.parametrize("batches", [1, 2])
def test_a_module_that_runs_twice_is_calibrated_on_both_inputs(batches: int, groups: int) -> None:
    torch.manual_seed(0)
    model = prepare(_Twice(), QuantPlan.parse([{"layer": {"activation": {"bits": 3, "observer": "minmax"}}}]))
    x, reports = torch.randn(16, 4), []
    calibrate_in_order(model, x.chunk(batches), groups=groups, on_progress=lambda *report: reports.append(report))
    seen = torch.cat([x, 5 * nn.functional.linear(x, model.layer.weight, model.layer.bias)])
    quantizer = model.layer.activation_quantizer
    torch.testing.assert_close([quantizer.lower_bound[0], quantizer.upper_bound[0]], [seen.min(), seen.max()])
    assert reports[-1][0] == reports[-1][1]


def test_parts_of_a_split_layer_start_equal(perceptron: nn.Module) -> None:
    part = {"bits": 3, "observer": "dobi"}
    lines = [{"fc1": {"split_out": 2, "weight": part, "activation": part}}, {"fc2": {"activation": part}}]
    x = torch.randn(32, 6)
    found = []
    for groups in (0, 2):
        model = prepare(copy.deepcopy(perceptron), QuantPlan.parse(lines))
        calibrate_in_order(model, [x], groups=groups)
        first, second = model.fc1.parts
        assert torch.equal(first.activation_quantizer.lower_bound, second.activation_quantizer.lower_bound)
        found.append(bounds(model))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("batches", [0, 1, 2])
@pytest.mark.parametrize("groups", [0, 2])
def test_no_data_is_an_error_that_names_the_layer(prepared_perceptron, batches: int, groups: int) -> None:
    model = prepared_perceptron()
    with pytest.raises(UserError, match="'fc[12].activation_quantizer' saw no data"):
        calibrate_in_order(model, [torch.randn(4, 6)] * batches, groups=groups, forward=lambda batch: model.fc1(batch))


@pytest.mark.parametrize("groups", [0, 2])
def test_constant_tensor(prepared_perceptron, groups: int, caplog: pytest.LogCaptureFixture) -> None:
    """It stays as it is until the end, so that what comes after it can be calibrated."""
    model, x = prepared_perceptron(), torch.ones(4, 6)
    with pytest.raises(UserError, match="'fc1.activation_quantizer' saw a constant tensor"):
        calibrate_in_order(model, [x], groups=groups)
    with caplog.at_level(logging.WARNING, "basicsr_quant"):
        calibrate_in_order(model, [x], groups=groups, allow_degenerate=True)
    assert "'fc1.activation_quantizer' saw a constant tensor" in caplog.text
    assert torch.isfinite(model.fc2.activation_quantizer.lower_bound).all()


def test_weights_alone(perceptron: nn.Module) -> None:
    model = prepare(perceptron, QuantPlan.parse([{"fc1": {"weight": {"bits": 4, "observer": "minmax"}}}]))
    calibrate_in_order(model, [torch.randn(2, 6)])
    assert torch.isfinite(model.fc1.weight_quantizer.lower_bound).all()
