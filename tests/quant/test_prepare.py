"""Preparing models: what is swapped, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import calibrate, named_quantizers, set_state
from basicsr_quant.quant.layers.conv2d import QuantConv2d
from basicsr_quant.quant.layers.linear import QuantLinear, SplitLinear
from basicsr_quant.quant.layers.table import register_quant_module, table
from basicsr_quant.quant.layers.weighted import frozen_weights
from basicsr_quant.quant.operand import Operand
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import Quantizer, State

BOTH = {"weight": {"bits": 4}, "activation": {"bits": 4}}


def plan(*lines: dict) -> QuantPlan:
    return QuantPlan.parse(lines)


def test_modules_are_swapped_and_keep_their_parameters(perceptron) -> None:
    weight = perceptron.fc1.weight
    model = prepare(perceptron.train(), plan({"fc1": BOTH}))
    assert model is perceptron
    assert isinstance(model.fc1, QuantLinear)
    assert model.fc1.weight is weight
    assert model.fc1.training
    assert type(model.fc2) is nn.Linear
    assert [name for name, _ in named_quantizers(model)] == ["fc1.weight_quantizer", "fc1.activation_quantizer"]


def test_first_line_wins_and_none_leaves_alone(perceptron) -> None:
    model = prepare(perceptron, plan({"fc1": "none"}, {"fc*": {"weight": {"bits": 3}}}))
    assert type(model.fc1) is nn.Linear
    assert model.fc2.activation_quantizer is None


@pytest.mark.parametrize(("lines", "message"), [
    ([{"fc1": BOTH}, {"fc3": BOTH}], "plan line 2 \\('fc3'\\) matches nothing: no quantizable"),
    ([{"fc*": BOTH}, {"act": "none"}], "plan line 2 \\('act'\\) matches nothing"),
    ([{"fc1": BOTH}, {"fc1": "none"}], "plan line 2 \\('fc1'\\) matches nothing: an earlier line"),
    ([{"fc1": {**BOTH, "split_out": 3}}], "'fc1': split_out: 3 does not divide the 8 rows"),
    ([{"op:matmul": {"lhs": {"bits": 4}}}], "an example input is needed"),
])
def test_refused_plans(perceptron, lines: list[dict], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(perceptron, plan(*lines))


def test_twice_quantized(perceptron) -> None:
    model = prepare(perceptron, plan({"fc1": BOTH}))
    with pytest.raises(UserError, match="'fc1' is quantized already"):
        prepare(model, plan({"fc2": BOTH}))


def test_shared_modules() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(UserError, match="'0' is shared"):
        prepare(nn.Sequential(layer, nn.ReLU(), layer), plan({"*": BOTH}))
    prepare(nn.Sequential(layer, nn.Linear(3, 3), layer), plan({"0": "none"}, {"*": BOTH}))


def test_split_out_computes_the_same(perceptron) -> None:
    x = torch.randn(5, 6)
    wanted = perceptron(x)
    model = prepare(perceptron, plan({"fc1": {**BOTH, "split_out": 4}}))
    assert isinstance(model.fc1, SplitLinear)
    set_state(model, State.OFF)
    torch.testing.assert_close(model(x), wanted)
    assert model.state_dict()["fc1.parts.3.weight"].shape == (2, 6)


def test_split_without_bias_or_activation() -> None:
    model = prepare(nn.Sequential(nn.Linear(3, 6, bias=False)), plan({"0": {"split_out": 2, "weight": {"bits": 8}}}))
    calibrate(model, [torch.randn(2, 3)])
    assert model(torch.randn(2, 3)).shape == (2, 6)


@pytest.mark.parametrize("keywords", [{"stride": 2, "padding": 1}, {"groups": 2}, {"padding": "same", "dilation": 2}])
def test_convolutions_compute_the_same(keywords: dict) -> None:
    convolution, x = nn.Conv2d(4, 6, 3, **keywords), torch.randn(2, 4, 9, 9)
    wanted = convolution(x)
    recipe = {"weight": {"bits": 8, "per": "channel"}, "activation": {"bits": 8}}
    model = prepare(nn.Sequential(convolution), plan({"0": recipe}))
    assert isinstance(model[0], QuantConv2d)
    set_state(model, State.OFF)
    assert torch.equal(model(x), wanted)
    calibrate(model, [x])
    assert (model(x) - wanted).abs().max() < 0.1


@pytest.mark.parametrize(("module", "recipe", "message"), [
    (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), BOTH, "'0': a Conv2d with padding_mode 'reflect'"),
    (nn.Conv2d(3, 3, 3), {**BOTH, "split_out": 3}, "split_out works on Linear"),
    (Operand(), {"weight": {"bits": 4}}, "an operand has no weight"),
])
def test_refused_modules(module: nn.Module, recipe: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(nn.Sequential(module), plan({"0": recipe}))


def test_quantizers_take_the_layer_s_precision() -> None:
    model = prepare(nn.Sequential(nn.Linear(3, 3)).double(), plan({"0": BOTH}))
    assert {bound.dtype for bound in model.parameters()} == {torch.float64}


def test_frozen_weights(prepared_perceptron) -> None:
    model, x = prepared_perceptron(), torch.randn(4, 6)
    calibrate(model, [x])
    wanted, calls = model(x), []
    with frozen_weights(model):
        handle = model.fc1.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
        assert torch.equal(model(x), wanted)
        assert not calls
    assert torch.equal(model(x), wanted)
    assert calls
    handle.remove()
    with pytest.raises(RuntimeError, match="boom"), frozen_weights(model):
        raise RuntimeError("boom")
    assert model.fc1.frozen is None


def test_copy_and_state_dict_round_trip(prepared_perceptron) -> None:
    model, x = prepared_perceptron(), torch.randn(4, 6)
    twin = copy.deepcopy(model)
    calibrate(model, [x])
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x))


def test_another_type_can_be_registered() -> None:
    class Scale(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    @register_quant_module(Scale)
    class QuantScale(Quantizer):
        @classmethod
        def from_module(cls, module: nn.Module, recipe) -> nn.Module:
            return cls(recipe.activation)

    try:
        model = prepare(nn.Sequential(Scale()), plan({"0": {"activation": {"bits": 2}}}))
        assert isinstance(model[0], QuantScale)
    finally:
        del table()[Scale]


@pytest.mark.parametrize(("module", "recipe", "message"), [
    (nn.Conv2d(4, 4, 3), {**BOTH, "split_in": {"activation_axis": -1}}, "axis -1 of a Conv2d's input is its width"),
    (nn.Conv2d(4, 4, 3, groups=2), {**BOTH, "split_in": {}}, "cannot cut a Conv2d with groups"),
    (nn.Conv2d(4, 4, 3), {**BOTH, "split_in": {"at": 4}}, "split_in at 4 leaves nothing of the 4 input channels"),
    (nn.Conv2d(1, 4, 3), {**BOTH, "split_in": {}}, "split_in at half leaves nothing"),
    (nn.Linear(4, 4), {**BOTH, "split_in": {"at": 2}}, "its last axis; write 'activation_axis: -1'"),
    (nn.Linear(4, 4), {**BOTH, "split_in": {"at": "concat"}}, "split_in 'concat': nothing is known to be joined"),
])
def test_refused_cuts(module: nn.Module, recipe: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"'0': .*{message}"):
        prepare(nn.Sequential(module), plan({"0": recipe}))


def test_joined_inputs_are_cut_where_they_are_joined() -> None:
    recipe = {**BOTH, "split_in": {"at": "concat"}}
    model = prepare(nn.Sequential(nn.Conv2d(5, 4, 3)), plan({"0": recipe}), concat_splits={"0": 2, "1": 7})
    calibrate(model, [torch.randn(2, 5, 4, 4)])
    assert model[0].weight_quantizer.at == model[0].activation_quantizer.at == 2
    assert model[0].weight_quantizer.describe() == "2 x 4b float_offset/tensor"
