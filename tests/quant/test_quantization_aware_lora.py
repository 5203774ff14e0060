"""Quantization-aware LoRA."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.bounds import RelativeSteps
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.layers.weighted import frozen_weights, merge_weights, replaced_weights, weighted_layers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantization_aware_lora import install_low_rank_changes, low_rank_changes
from basicsr_quant.registry import SELECTORS


def plan(bits: int = 3, let: bool = False) -> QuantPlan:
    weight = {"bits": bits, "grid": "int_zero_point", "per": "channel"}
    line = {"weight": weight, "activation": {"bits": bits, "grid": "int_zero_point"}}
    return QuantPlan.parse([{"*": {**line, "let": {}} if let else line}])


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(),
                          nn.Linear(4 * 36, 5))
    return model.to(dtype).eval()


def example(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def prepared(dtype: torch.dtype = torch.float32, let: bool = False) -> nn.Module:
    model = prepare(network(dtype), plan(let=let))
    calibrate(model, [example(dtype)])
    return model


@pytest.mark.parametrize("let", [False, True])
def test_no_change_at_first(let: bool) -> None:
    model, x = prepared(let=let), example()
    before = model(x).detach()
    install_low_rank_changes(model, rank=2)
    assert torch.equal(model(x), before)


def randomize(model: nn.Module) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("parametrization.up"):
                value.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))


def test_value_and_gradients_are_those_of_the_rounded_sum() -> None:
    """Against float64 autograd of y = x * Q(W + B A), with the quantizers of the layer."""
    model, x = prepared(torch.float64), example(torch.float64)
    install_low_rank_changes(model, rank=2)
    low_rank_changes(model, 0)
    randomize(model)
    layer = model[0]
    loss = layer(x).square().sum()
    loss.backward()
    up, down = (value.detach().clone().requires_grad_() for value in (layer.parametrization.up,
                                                                       layer.parametrization.down))
    weight = layer.weight_quantizer(layer.weight + (up @ down).reshape(layer.weight.shape))
    wanted = nn.functional.conv2d(layer.activation_quantizer(x), weight, layer.bias, padding=1).square().sum()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.parametrization.up.grad, up.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.parametrization.down.grad, down.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("let", [False, True])
def test_merging_changes_nothing(let: bool) -> None:
    model, x = prepared(let=let), example()
    if let:
        with torch.no_grad():
            for _, layer in weighted_layers(model):
                layer.let.scale.value.uniform_(0.5, 2)
                layer.let.offset.normal_(std=0.1)
    install_low_rank_changes(model, rank=2)
    randomize(model)
    learned = model(x).detach()
    with frozen_weights(model):
        assert torch.equal(model(x), learned)
    merge_weights(model)
    assert not any("parametrization" in name for name in model.state_dict())
    assert torch.equal(model(x), learned)
    for _, layer in weighted_layers(model):
        assert all(len(row.unique()) <= 8 for row in layer.parts().weight)


def test_what_learns_and_in_which_units() -> None:
    model = prepared()
    with pytest.raises(UserError, match="no layer has a low-rank change"):
        low_rank_changes(model, 0)
    install_low_rank_changes(model, rank=3, where=("0", "4"))
    parameters, units, keep = low_rank_changes(model, 0)
    assert keep is None
    unit_of = {id(parameter): unit for parameter, unit in zip(parameters, units, strict=True)}
    for layer in (model[0], model[4]):
        quantizer, change = layer.weight_quantizer, layer.parametrization
        step = (quantizer.upper_bound - quantizer.lower_bound).mean() / 7
        assert (change.down.shape, change.up.shape) == ((3, layer.weight[0].numel()), (len(layer.weight), 3))
        for parameter in (change.down, change.up):
            torch.testing.assert_close(unit_of[id(parameter)], step.detach())
    quantizer = model[2].activation_quantizer
    assert torch.equal(unit_of[id(quantizer.upper_bound)], (quantizer.upper_bound - quantizer.lower_bound).detach())
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning == {f"{number}.parametrization.{part}" for number in (0, 4) for part in ("down", "up")} | {
        f"{number}.activation_quantizer.{side}_bound" for number in (0, 2, 4) for side in ("lower", "upper")}
    assert len(parameters) == len(learning)


def test_it_learns_from_the_teacher() -> None:
    teacher, x = network(), example()
    model = prepared()
    install_low_rank_changes(model, rank=4)
    parameters, units, keep = SELECTORS.get("low_rank_changes")(model, 0.05)
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    RelativeSteps(optimizer, units)
    target = teacher(x).detach()
    before = (model(x) - target).square().mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
        keep()
    assert (model(x) - target).square().mean().item() < 0.8 * before


def test_a_teacher_with_the_same_parameters_keeps_them() -> None:
    teacher, x = network(), example()
    model = prepare(copy.deepcopy(teacher, {id(value): value for value in teacher.parameters()}), plan())
    calibrate(model, [x])
    assert model[0].weight is teacher[0].weight
    before = teacher(x).detach()
    assert replaced_weights(model) == {}
    install_low_rank_changes(model, rank=2, where=("0",))
    randomize(model)
    merge_weights(model)
    assert torch.equal(teacher(x), before)
    assert list(replaced_weights(model)) == ["0"]
    assert not torch.equal(model[0].weight, teacher[0].weight)
    other = prepared()
    for name, weight in replaced_weights(model).items():
        other.get_submodule(name).replace_weight(weight)
    assert torch.equal(other(x), model(x))
    with pytest.raises(ValueError, match="does not fit"):
        other[0].replace_weight(torch.zeros(3))


def test_draws_depend_on_seed_and_name_alone_and_states_round_trip() -> None:
    model = prepared()
    same, other, part = (copy.deepcopy(model) for _ in range(3))
    for network_, seed, where in ((model, 1, ("*",)), (same, 1, ("*",)), (other, 2, ("*",)), (part, 1, ("4",))):
        install_low_rank_changes(network_, rank=2, seed=seed, where=where)
    assert torch.equal(model[0].parametrization.down, same[0].parametrization.down)
    assert not torch.equal(model[0].parametrization.down, other[0].parametrization.down)
    assert torch.equal(model[4].parametrization.down, part[4].parametrization.down)
    randomize(model)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(example()), model(example()))
