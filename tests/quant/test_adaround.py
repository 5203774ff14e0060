"""AdaRound: soft rounding, its penalty, and what remains when it is merged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.adaround import (
    LearnedRounding,
    decided_roundings,
    initial_logits,
    install_learned_rounding,
    learned_roundings,
    rectified_sigmoid,
    rounding_penalty,
)
from basicsr_quant.quant.calibrate import calibrate_weights, set_state
from basicsr_quant.quant.layers.weighted import frozen_weights, merge_weights, weighted_layers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State
from basicsr_quant.quant.split_quantizer import pieces

GRIDS: list[dict[str, Any]] = [
    {"grid": "float_offset", "observer": "minmax"},
    {"grid": "int_zero_point", "observer": {"type": "dobi", "search": "two_sided"}},
    {"grid": "symmetric_step", "observer": {"type": "step_size", "codes": "signed"}},
]
all_grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid["grid"])
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "split": {"split_in": {"at": 3}}, "let": {"let": {}}}


def layer(grid: dict[str, Any], kind: str = "plain", bits: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    weight = {"bits": bits, "per": "channel", **grid}
    model = nn.Sequential(nn.Conv2d(6, 5, 3, padding=1)).to(dtype)
    prepare(model, QuantPlan.parse([{"0": {"weight": weight, **KINDS[kind]}}]))
    if kind == "let":
        with torch.no_grad():
            model[0].let.scale.value.uniform_(0.5, 2)
    calibrate_weights(model)
    return model


def example(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


@all_grids
@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_at_the_weight(grid: dict[str, Any], kind: str) -> None:
    """Where the grid reaches; else at its end."""
    model = layer(grid, kind, dtype=torch.float64)
    install_learned_rounding(model)
    soft = model[0].parts().weight.detach()
    weight, quantizer = model[0].transformed_weight().detach(), model[0].weight_quantizer
    for (_, part, piece), (_, _, found) in zip(pieces("", quantizer, weight), pieces("", quantizer, soft), strict=True):
        step, first = part.affine()
        torch.testing.assert_close(found, piece.clamp(first, first + 7 * step), rtol=0, atol=1e-9)


def formula(weight: torch.Tensor, first: torch.Tensor, step: torch.Tensor, logits: torch.Tensor,
            bits: int) -> torch.Tensor:
    h = (1.2 * torch.sigmoid(logits) - 0.1).clamp(0, 1)
    return first + step * (((weight - first) / step).floor() + h).clamp(0, 2**bits - 1)


@all_grids
def test_values_and_gradients_are_the_formula_s(grid: dict[str, Any]) -> None:
    model = layer(grid, dtype=torch.float64)
    quantized, x = model[0], example(torch.float64)
    install_learned_rounding(model)
    (logits,) = learned_roundings(model).parameters
    with torch.no_grad():
        logits.add_(torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)))
    loss = model(x).square().sum() + 0.01 * rounding_penalty(model, 7.5)
    loss.backward()
    mine = logits.grad.clone()
    copied = logits.detach().clone().requires_grad_()
    quantizer = quantized.weight_quantizer
    step, first = quantizer.affine()
    rounded = formula(quantized.weight.detach(), first, step, copied, 3)
    h = (1.2 * torch.sigmoid(copied) - 0.1).clamp(0, 1)
    penalty = (1 - (2 * h - 1).abs() ** 7.5).sum()
    wanted = nn.functional.conv2d(x, rounded, quantized.bias, padding=1).square().sum() + 0.01 * penalty
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    wanted.backward()
    torch.testing.assert_close(mine, copied.grad, rtol=1e-8, atol=1e-10)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["0.parametrization.logits"]


@all_grids
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_merging_keeps_hard_decisions(grid: dict[str, Any], kind: str, bits: int) -> None:
    model, x = layer(grid, kind, bits), example()
    install_learned_rounding(model)
    (logits,) = learned_roundings(model).parameters
    with torch.no_grad():
        logits.copy_(torch.where(torch.rand(logits.shape) < 0.5, -9.0, 9.0))
        soft, weight = model(x), model[0].parts().weight.clone()
    merge_weights(model)
    assert not any("parametrization" in name for name in model.state_dict())
    torch.testing.assert_close(model[0].parts().weight, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x), soft, rtol=1e-4, atol=1e-5)
    for _, quantizer, tensor in model[0].rounded_parameters():
        codes = quantizer.encode(tensor)
        assert all(len(row.unique()) <= 2**bits for row in codes)
        torch.testing.assert_close(quantizer.decode(codes), tensor, rtol=1e-5, atol=1e-6)


def test_untouched_logits_merge_to_nearest_rounding() -> None:
    model, x = layer(GRIDS[0]), example()
    nearest = model(x).detach()
    install_learned_rounding(model)
    merge_weights(model)
    torch.testing.assert_close(model(x).detach(), nearest, rtol=1e-5, atol=1e-6)


def test_deciding_before_merging() -> None:
    model, x = layer(GRIDS[1]), example()
    install_learned_rounding(model)
    (logits,) = learned_roundings(model).parameters
    with torch.no_grad():
        logits.normal_(generator=torch.Generator().manual_seed(4))
    soft = model(x)
    with decided_roundings(model):
        decided = model(x)
    assert torch.equal(model(x), soft) and not torch.equal(decided, soft)
    merge_weights(model)
    torch.testing.assert_close(model(x), decided, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="no layer has a weight whose rounding"):
        learned_roundings(model)


def test_soft_becomes_hard_under_the_penalty() -> None:
    """Driven by the penalty alone every h ends at 0 or 1, so that merging changes nothing beyond rounding errors."""
    model, x = layer(GRIDS[1]), example()
    install_learned_rounding(model)
    optimizer = torch.optim.Adam(learned_roundings(model).parameters, lr=0.1)
    for iteration in range(200):
        optimizer.zero_grad()
        rounding_penalty(model, 20 - 18 * iteration / 200).backward()
        optimizer.step()
    assert rounding_penalty(model, 2).item() == pytest.approx(0, abs=1e-5)
    soft = model(x).detach()
    merge_weights(model)
    torch.testing.assert_close(model(x).detach(), soft, rtol=1e-5, atol=1e-5)


def test_states_and_freezing() -> None:
    model, x = layer(GRIDS[1], "split"), example()
    plain = nn.functional.conv2d(x, model[0].weight, model[0].bias, padding=1)
    install_learned_rounding(model)
    with torch.no_grad():
        soft = model(x)
        with frozen_weights(model):
            assert torch.equal(model(x), soft)
        set_state(model, State.OFF)
        torch.testing.assert_close(model(x), plain)


def test_state_dict_round_trip() -> None:
    model, x = layer(GRIDS[1]), example()
    install_learned_rounding(model)
    with torch.no_grad():
        learned_roundings(model).parameters[0].normal_()
    again = layer(GRIDS[1])
    install_learned_rounding(again)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    for network in (model, again):
        merge_weights(network)
    third = layer(GRIDS[1])
    third.load_state_dict(model.state_dict())
    assert torch.equal(third(x), again(x))


def test_only_chosen_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    prepare(model, QuantPlan.parse([{"0": {"weight": {"bits": 4}}}, {"1": {"activation": {"bits": 4}}},
                                    {"2": {"weight": {"bits": 4}}}]))
    calibrate_weights(model)
    install_learned_rounding(copy.deepcopy(model), ("2",))
    install_learned_rounding(model, ("[01]",))
    found = [name for name, each in weighted_layers(model) if isinstance(each.parametrization, LearnedRounding)]
    assert found == ["0"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_initial_logits_give_the_fraction(dtype: torch.dtype) -> None:
    fraction = torch.linspace(0, 0.999, 101, dtype=dtype)
    torch.testing.assert_close(rectified_sigmoid(initial_logits(fraction)), fraction, rtol=0, atol=1e-6)
