"""Scales and bounds from data in both orders, and what learning takes and keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.bounds import RelativeSteps, bound_parameters, range_scales
from basicsr_quant.quant.calibrate import named_quantizers, set_state
from basicsr_quant.quant.let_calibration import calibrate_in_one_pass, calibrate_scales_first, renewed_bounds
from basicsr_quant.quant.let_learning import scale_keeper, transformation_parameters, transformation_units
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State

FIRST = {"type": "ema_minmax", "momentum": 1}


def network(bits: int = 8, observer: Any = "minmax", **extra: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 4, 1))
    tensor = {"bits": bits, "grid": "int_zero_point", "observer": observer}
    recipe = {"weight": {**tensor, "per": "channel"}, "activation": tensor, "bias": tensor, "let": {}, **extra}
    prepare(model, QuantPlan.parse([{"*": recipe}]))
    return model


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 4, 6, 6, generator=generator) * (number + 1) for number in range(count)]


def test_scales_first_then_bounds_with_the_final_scales() -> None:
    model, calls = network(split_in={"at": "half"}), []
    calibrate_scales_first(model, batches(), on_progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (1, 6) and calls[-1] == (6, 6)
    layer = model[0]
    largest = torch.cat(batches()).abs().amax((0, 2, 3))
    expected = (largest / layer.weight.detach().abs().amax((0, 2, 3))) ** 0.3
    torch.testing.assert_close(layer.let.scale.value.detach(), expected)
    inputs = torch.cat([layer.let(batch, 1).detach() for batch in batches()])
    for part, piece in zip(layer.activation_quantizer.parts, (inputs[:, :2], inputs[:, 2:]), strict=True):
        torch.testing.assert_close(part.lower_bound.detach()[0], piece.min())
    weight = layer.transformed_weight().detach()
    torch.testing.assert_close(layer.weight_quantizer.parts[1].upper_bound.detach().flatten(),
                               weight[:, 2:].amax((1, 2, 3)))
    assert torch.equal(layer.bias_quantizer.lower_bound[0], layer.bias.min())


def test_one_pass_keeps_the_bounds_of_the_first_batch() -> None:
    once, all_batches = network(observer=FIRST), network(observer=FIRST)
    calibrate_in_one_pass(once, batches(1))
    calibrate_in_one_pass(all_batches, batches(), momentum=0.9)
    for (name, one), (_, other) in zip(named_quantizers(once), named_quantizers(all_batches), strict=True):
        assert torch.equal(one.lower_bound, other.lower_bound) and torch.equal(one.upper_bound, other.upper_bound), name
    assert not torch.equal(once[0].let.scale.value, all_batches[0].let.scale.value)
    assert {quantizer.state for _, quantizer in named_quantizers(once)} == {State.QUANTIZE}


def test_one_pass_sees_rounded_inputs() -> None:
    model = network(bits=2)
    calibrate_in_one_pass(model, batches(1))
    inside = model[1](model[0](batches(1)[0]))
    torch.testing.assert_close(model[2].activation_quantizer.upper_bound[0], model[2].let(inside, 1).max())


def test_one_pass_needs_observers_of_one_pass() -> None:
    with pytest.raises(UserError, match="several passes"):
        calibrate_in_one_pass(network(observer={"type": "percentile", "percentile": 99}), batches())


@pytest.mark.parametrize("calibrate", [calibrate_scales_first, calibrate_in_one_pass])
def test_without_transformations(calibrate) -> None:
    model = network(let=None)
    calibrate(model, batches())
    assert torch.isfinite(model(batches()[0])).all()


@pytest.mark.parametrize("calibrate", [calibrate_scales_first, calibrate_in_one_pass])
def test_modules_without_data_are_refused(calibrate) -> None:
    model = network()
    with pytest.raises(UserError, match="'.*2.*' saw no data"):
        calibrate(model, batches(), forward=lambda x: model[0](x))


def test_renewed_bounds_are_those_of_the_last_forward() -> None:
    model = network()
    calibrate_scales_first(model, batches())
    transformation_parameters(model)
    with renewed_bounds(model):
        model(batches()[2])
        model(batches()[0]).sum().backward()
    torch.testing.assert_close(model[0].activation_quantizer.upper_bound[0], model[0].let(batches()[0], 1).max())
    assert model[0].let.scale.value.grad.abs().sum() > 0
    assert model[0].activation_quantizer.upper_bound.grad is None


def test_renewed_bounds_take_nothing_that_is_not_finite() -> None:
    model = network()
    calibrate_scales_first(model, batches())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad(), renewed_bounds(model):
        model(batches()[0] * torch.nan)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if ".activation_quantizer." in name)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_what_learns_is_chosen_by_name() -> None:
    model = network()
    calibrate_scales_first(model, batches())
    assert [parameter is wanted for parameter, wanted in zip(
        transformation_parameters(model, ["0.*"]), (model[0].let.offset, model[0].let.scale.value), strict=True)]
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        "0.let.offset", "0.let.scale.value"}
    assert len(transformation_parameters(model)) == 4
    assert len(bound_parameters(model, ["2.*"])) == len(range_scales(model, ["2.*"])) == 6
    assert all(name.startswith("2.") for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_relative_steps_move_scales_by_a_share() -> None:
    model = network()
    calibrate_scales_first(model, batches())
    optimizer = torch.optim.Adam(transformation_parameters(model), lr=0.01)
    RelativeSteps(optimizer, transformation_units(model))
    before = model[0].let.scale.value.detach().clone()
    model(batches()[1]).square().mean().backward()
    optimizer.step()
    share = (model[0].let.scale.value.detach() - before).abs() / before
    torch.testing.assert_close(share, torch.full_like(share, 0.01), rtol=5e-2, atol=0)
    quantizer = model[0].activation_quantizer
    width = float(quantizer.upper_bound - quantizer.lower_bound)
    torch.testing.assert_close(model[0].let.offset.detach().abs(), 0.01 * before * width, rtol=5e-2, atol=0)


def test_scales_stay_positive() -> None:
    model = network()
    calibrate_scales_first(model, batches())
    least = 0.1 * model[0].let.scale.value.detach()
    keep = scale_keeper(model, 0.1)
    with torch.no_grad():
        model[0].let.scale.value.sub_(100)
    keep()
    assert torch.equal(model[0].let.scale.value.detach(), least)


@pytest.mark.parametrize("recipe", [
    {"split_in": {"at": "half"}}, {"split_in": {"at": 3, "activation_axis": -1}}, {"bias": {"bits": 4}}, {},
])
def test_cut_and_biased_layers_without_transformation(recipe: dict) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 5), torch.randn(4, 6, 8)
    expected = layer(x)
    both = {"weight": {"bits": 8, "per": "channel"}, "activation": {"bits": 8}}
    model = prepare(nn.Sequential(layer), QuantPlan.parse([{"0": {**both, **recipe}}]))
    calibrate_scales_first(model, [x])
    assert not any("let" in name for name in model.state_dict())
    assert float((model(x) - expected).norm() / expected.norm()) < (0.1 if "bias" in recipe else 0.02)
    set_state(model, State.OFF)
    assert torch.equal(model(x), expected)
