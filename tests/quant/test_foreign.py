"""Products and softmaxes inside networks that know nothing of operands."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.errors import UserError
from basicsr_quant.quant.accounting import account
from basicsr_quant.quant.calibrate import calibrate, named_quantizers, set_state
from basicsr_quant.quant.foreign import QuantizedModel, explicit_attention, inner_network
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State

FOUR = {"bits": 4}
PRODUCTS = {"op:matmul *.attention": {"lhs": FOUR, "rhs": FOUR}}


class Attention(nn.Module):
    """Single-head attention on (B, N, 8), written in one of the usual ways."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.project = nn.Linear(8, 24)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(x).chunk(3, -1)
        if self.style == "fused":
            return functional.scaled_dot_product_attention(query, key, value)
        if self.style == "fused with mask":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            return functional.scaled_dot_product_attention(query, key, value=value, attn_mask=mask, scale=8**-0.5)
        query = query * 8**-0.5
        if self.style == "operator":
            return (query @ key.transpose(-1, -2)).softmax(-1) @ value
        if self.style == "function":
            return torch.matmul(functional.softmax(torch.bmm(query, key.mT), dim=-1), other=value)
        if self.style == "keywords":
            return torch.bmm(input=torch.softmax(input=query.matmul(other=key.mT), dim=-1), mat2=value)
        return torch.matmul(self.softmax(query.bmm(key.mT)), value)


STYLES = ["operator", "function", "keywords", "module", "fused", "fused with mask"]


class Network(nn.Module):
    """Two attentions behind each other."""

    window_multiple = 4

    def __init__(self, style: str = "operator") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attention": Attention(style)}) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block["attention"](x)
        return x


EXAMPLE = torch.zeros(1, 5, 8)


def prepared(style: str = "operator", *lines: dict) -> nn.Module:
    return prepare(Network(style), QuantPlan.parse(lines or (PRODUCTS,)), EXAMPLE)


@pytest.mark.parametrize("style", STYLES)
def test_places_and_equality_when_off(style: str) -> None:
    model, x = prepared(style), torch.randn(3, 5, 8)
    assert [name for name, _ in named_quantizers(model)] == [
        f"operands.blocks/{block}/attention:matmul#{number}:{side}"
        for block in (0, 1) for number in (0, 1) for side in ("lhs", "rhs")]
    set_state(model, State.OFF)
    torch.testing.assert_close(model(x), Network(style)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("style", STYLES)
def test_operands_are_rounded(style: str, batches: int) -> None:
    model, x = prepared(style), torch.randn(4, 5, 8)
    calibrate(model, x.chunk(batches))
    seen = {}
    for name, quantizer in named_quantizers(model):
        quantizer.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: (inputs, output)}))
    output = model(x)
    assert len(seen) == 8
    assert all(rounded.unique().numel() <= 16 for _, rounded in seen.values())
    for number in (0, 1):
        probabilities = seen[f"operands.blocks/{number}/attention:matmul#1:lhs"][0][0]
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(4, 5))
    assert not torch.equal(output, Network(style)(x))


def test_all_styles_compute_the_same() -> None:
    x = torch.randn(3, 5, 8)
    outputs = []
    for style in STYLES:
        model = prepared(style)
        calibrate(model, [x])
        outputs.append(model(x))
    for output in outputs[1:]:
        assert (output - outputs[0]).abs().mean() < 1e-4


@pytest.mark.parametrize("style", ["operator", "function", "keywords", "module", "fused"])
def test_softmax_lines(style: str) -> None:
    model = prepared(style, {"op:softmax *.0.attention*": {"lhs": {"bits": 8}}})
    names = [name for name, _ in named_quantizers(model)]
    inside = "/softmax" if style == "module" else ""
    assert names == [f"operands.blocks/0/attention{inside}:softmax#0:lhs"]
    calibrate(model, [torch.randn(3, 5, 8)])
    assert model(torch.randn(2, 5, 8)).shape == (2, 5, 8)


def test_first_line_wins_and_idle_lines_are_named() -> None:
    model = prepared("operator", {"op:matmul blocks.0.*": "none"}, PRODUCTS)
    assert all("blocks/1" in name for name, _ in named_quantizers(model))
    with pytest.raises(UserError, match="plan line 2 \\('op:softmax heads.\\*'\\) matches nothing"):
        prepared("operator", PRODUCTS, {"op:softmax heads.*": {"lhs": FOUR}})


def test_numbered_lines() -> None:
    model = prepared("operator", {"op:matmul#1 blocks.0.*": {"lhs": FOUR}}, {"op:matmul#0": {"rhs": FOUR}})
    assert [name for name, _ in named_quantizers(model)] == [
        "operands.blocks/0/attention:matmul#0:rhs", "operands.blocks/0/attention:matmul#1:lhs",
        "operands.blocks/1/attention:matmul#0:rhs"]
    with pytest.raises(UserError, match="'op:matmul#2 \\*'\\) matches nothing"):
        prepared("operator", {"op:matmul#2": {"lhs": FOUR}})


def test_together_with_quantized_modules() -> None:
    model = prepared("operator", {"*.project": {"weight": FOUR, "activation": FOUR, "split_out": 3}}, PRODUCTS)
    calibrate(model, [torch.randn(4, 5, 8)])
    assert len(list(named_quantizers(model))) == 8 + 2 * 6
    with pytest.raises(UserError, match="is quantized already"):
        prepare(model, QuantPlan.parse([PRODUCTS]), EXAMPLE)


def test_state_dict_and_copy() -> None:
    model, x = prepared(), torch.randn(4, 5, 8)
    calibrate(model, [x])
    other = prepared()
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    assert torch.equal(other(x), model(x))
    assert torch.equal(twin(x), model(x))
    operand = "blocks/0/attention:matmul#0:lhs"
    twin.operands[operand].set_bounds(torch.tensor(-0.01), torch.tensor(0.01))
    assert not torch.equal(twin(x), model(x))


def test_bounds_learn_and_hooks_are_gone() -> None:
    model, x = prepared(), torch.randn(4, 5, 8)
    calibrate(model, [x])
    model(x).square().sum().backward()
    assert all(bound.grad is not None for _, quantizer in named_quantizers(model) for bound in quantizer.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_inside_leaves_the_model_usable() -> None:
    model, x = prepared(), torch.randn(4, 5, 8)
    calibrate(model, [x])
    wanted = model(x)
    with pytest.raises(RuntimeError):
        model(torch.randn(4, 5, 7))
    assert torch.equal(model(x), wanted)
    assert not any(module._forward_hooks for module in model.modules())


def test_attributes_of_the_network() -> None:
    model = prepared()
    assert isinstance(model, QuantizedModel)
    assert model.window_multiple == 4
    assert inner_network(model) is model.network
    assert inner_network(model.network) is model.network
    with pytest.raises(AttributeError, match="no_such"):
        _ = model.no_such


def test_compilation() -> None:
    model, x = prepared(), torch.randn(4, 5, 8)
    calibrate(model, [x])
    with pytest.raises(UserError, match="cannot be compiled"):
        model.compile()
    assert torch.equal(torch.compile(model, backend="eager")(x), model(x))


@pytest.mark.parametrize("mask", [None, torch.randn(5, 5), torch.eye(5, dtype=torch.bool)])
def test_explicit_attention(mask: torch.Tensor | None) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    wanted = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(explicit_attention(query, key, value, attn_mask=mask, scale=0.3), wanted)


@pytest.mark.parametrize("argument", [{"dropout_p": 0.1}, {"is_causal": True}, {"enable_gqa": True}])
def test_unsupported_attention(argument: dict) -> None:
    with pytest.raises(UserError, match="cannot be quantized"):
        explicit_attention(*torch.randn(3, 1, 2, 4), **argument)


@pytest.mark.parametrize("style", STYLES)
def test_accounting_sees_the_operands(style: str) -> None:
    model = prepared(style).to("meta")
    rows = {layer.name: layer for layer in account(model, (2, 5, 8)).layers if layer.kind == "matmul"}
    assert list(rows) == [f"blocks.{block}.attention:matmul#{number}" for block in (0, 1) for number in (0, 1)]
    for row in rows.values():
        assert (row.macs, row.weight_bits, row.activation_bits, row.is_quantized) == (2 * 5 * 5 * 8, 4, 4, True)
