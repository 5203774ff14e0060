"""Analysis against direct computation in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from basicsr_quant.errors import UserError
from basicsr_quant.quant.analysis import Analysis, LayerAnalysis, analyse
from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State

Array = NDArray[np.float64]
RECIPE: dict[str, Any] = {"bits": 3, "observer": "minmax"}
NARROW: dict[str, Any] = {"bits": 4, "observer": {"type": "percentile", "percentile": 90}}


class Attention(nn.Module):
    """A Linear, GELU, a Linear, and a product of the result with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(functional.gelu(self.first(x)))
        return torch.matmul(x, x.transpose(-1, -2))


def on_grid(x: Array, lower: float, upper: float, bits: int) -> Array:
    levels = 2**bits - 1
    step = (upper - lower) / levels
    return np.round((np.clip(x, lower, upper) - lower) / step) * step + lower


def decibels(signal: Array, rounded: Array) -> float:
    return float(10 * np.log10(np.square(signal).sum() / np.square(signal - rounded).sum()))


def by_name(analysis: Analysis) -> dict[str, LayerAnalysis]:
    return {layer.name: layer for layer in analysis.layers}


@pytest.fixture
def samples() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 7, 6, dtype=torch.float64) for _ in range(2)]


@pytest.fixture
def network(samples: list[torch.Tensor]) -> nn.Module:
    torch.manual_seed(0)
    plan = QuantPlan.parse([{"first": {"weight": RECIPE, "activation": RECIPE}},
                            {"second": {"weight": RECIPE, "activation": NARROW, "bias": RECIPE}},
                            {"op:matmul *": {"lhs": RECIPE}}])
    model = prepare(Attention().double(), plan, samples[0])
    calibrate(model, samples)
    return model


def test_against_float64(network: nn.Module, samples: list[torch.Tensor]) -> None:
    """Every ratio is that of an explicit computation with NumPy."""
    values = {name: tensor.detach().numpy() for name, tensor in network.named_parameters()}

    def bounds(name: str) -> tuple[float, float]:
        return float(values[f"{name}.lower_bound"][0]), float(values[f"{name}.upper_bound"][0])

    def rounded(x: Array, name: str, bits: int = 3) -> Array:
        return on_grid(x, *bounds(name), bits)

    x = torch.cat(samples).numpy()
    w1, b1, w2, b2 = (values[f"network.{name}"] for name in ("first.weight", "first.bias", "second.weight",
                                                             "second.bias"))
    w1_q, w2_q = (rounded(w, f"network.{name}.weight_quantizer") for name, w in (("first", w1), ("second", w2)))
    b2_q, left = rounded(b2, "network.second.bias_quantizer"), "operands.:matmul#0:lhs"

    def gelu(y: Array) -> Array:
        return functional.gelu(torch.from_numpy(y)).numpy()

    def second(h: Array) -> Array:
        return rounded(h, "network.second.activation_quantizer", 4) @ w2_q.T + b2_q

    first_fp = x @ w1.T + b1
    hidden = gelu(first_fp)
    second_fp = hidden @ w2.T + b2
    first_q = rounded(x, "network.first.activation_quantizer") @ w1_q.T + b1
    second_q = second(gelu(first_q))
    product_fp, product_q = second_fp @ second_fp.swapaxes(1, 2), rounded(second_q, left) @ second_q.swapaxes(1, 2)

    analysis = analyse(network, samples, bins=16)
    assert [layer.name for layer in analysis.layers] == ["first", "second", ":matmul#0:lhs"]
    assert [layer.kind for layer in analysis.layers] == ["linear", "linear", "operand"]
    expected = {
        "first": (decibels(first_fp, first_q), decibels(first_fp, first_q)),
        "second": (decibels(second_fp, second(hidden)), decibels(second_fp, second_q)),
        ":matmul#0:lhs": (decibels(second_fp, rounded(second_fp, left)), decibels(second_fp, rounded(second_q, left))),
    }
    for name, layer in by_name(analysis).items():
        assert (layer.teacher_forced, layer.cumulative) == pytest.approx(expected[name], rel=1e-10)
    assert analysis.output == pytest.approx(decibels(product_fp, product_q), rel=1e-10)

    tensors = {tensor.name: tensor for tensor in by_name(analysis)["second"].tensors}
    assert {name: tensor.kind for name, tensor in tensors.items()} == {
        "weight_quantizer": "weight", "bias_quantizer": "bias", "activation_quantizer": "input"}
    weight, narrow = tensors["weight_quantizer"], tensors["activation_quantizer"]
    assert weight.sqnr == pytest.approx(decibels(w2, w2_q), rel=1e-10)
    assert (weight.lower, weight.upper, weight.clipped) == (w2.min(), w2.max(), 0)
    assert narrow.sqnr == pytest.approx(
        decibels(hidden, rounded(hidden, "network.second.activation_quantizer", 4)), rel=1e-10)
    lower, upper = bounds("network.second.activation_quantizer")
    assert narrow.clipped == np.mean((hidden < lower) | (hidden > upper)) > 0
    assert (narrow.minimum, narrow.maximum, narrow.bits) == (hidden.min(), hidden.max(), 4)
    assert narrow.counts == tuple(np.histogram(hidden, 16)[0])


def test_network_is_left_as_it_was(network: nn.Module, samples: list[torch.Tensor]) -> None:
    def watcher(x: torch.Tensor) -> None:
        return None

    for number, (_, quantizer) in enumerate(named_quantizers(network)):
        quantizer.state, quantizer.watcher = (State.QUANTIZE, None) if number % 2 else (State.OFF, watcher)
    before = network(samples[0])
    states = [(quantizer.state, quantizer.watcher) for _, quantizer in named_quantizers(network)]
    analyse(network, samples)
    assert [(quantizer.state, quantizer.watcher) for _, quantizer in named_quantizers(network)] == states
    assert torch.equal(network(samples[0]), before)
    assert not any(module._forward_hooks for module in network.modules())


def test_swinir(prepared_swinir: Callable[..., nn.Module]) -> None:
    """Operands and parts of qkv are there in order of execution; more bits lose less; 8 bits lose little."""
    image = [torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    found = {}
    for bits in (3, 8):
        model = prepared_swinir(bits, "minmax")
        calibrate(model, image)
        done: list[tuple[int, int]] = []
        found[bits] = analyse(model, image, on_progress=lambda number, total, done=done: done.append((number, total)))
        assert done == [(1, 3), (2, 3), (3, 3)]
    coarse, fine = by_name(found[3]), by_name(found[8])
    names = list(fine)
    block = [name for name in names if name.startswith("layers.0.residual_group.blocks.0.")]
    assert [name.split("blocks.0.")[1] for name in block] == [
        "attn.qkv.parts.0", "attn.qkv.parts.1", "attn.qkv.parts.2", "attn.query", "attn.key", "attn.value",
        "attn.attention_map", "attn.proj", "mlp.fc1", "mlp.fc2"]
    assert all(fine[name].teacher_forced > coarse[name].teacher_forced + 20 for name in names)
    first = fine[names[0]]
    assert first.cumulative == pytest.approx(first.teacher_forced)
    assert found[8].output > 30 > found[3].output
    assert all(sum(tensor.counts) > 0 for layer in fine.values() for tensor in layer.tensors)


def test_no_error_and_no_signal(samples: list[torch.Tensor]) -> None:
    layer = nn.Linear(6, 1, bias=False).double()
    layer.weight.data.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]]))
    model = prepare(nn.Sequential(layer), QuantPlan.parse([{"0": {"weight": RECIPE}}]))
    calibrate(model, samples)
    analysis = analyse(model, samples)
    assert analysis.output == analysis.layers[0].teacher_forced == math.inf
    assert analyse(model, [torch.zeros(1, 6).double()]).output == math.inf


def test_output_is_not_finite(network: nn.Module, samples: list[torch.Tensor]) -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        analyse(network, [samples[0], samples[1] * torch.inf])


def test_nothing_is_quantized(samples: list[torch.Tensor]) -> None:
    with pytest.raises(UserError, match="no tensor of this network has a quantizer"):
        analyse(nn.Linear(6, 2).double(), samples)
