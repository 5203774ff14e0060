from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from layer_strategies import quantized
from torch import nn

from basicsr_quant.deploy.freeze import folded_layers, freeze, frozen_layers, shell
from basicsr_quant.deploy.frozen import FrozenBinaryConv2d, FrozenLinear
from basicsr_quant.deploy.runtimes.reference import Reference
from basicsr_quant.deploy.streams import from_tensors, to_tensors
from basicsr_quant.quant.binary.activations import SignActivation
from basicsr_quant.quant.binary.conv2d import BinaryConv2d
from basicsr_quant.quant.binary.slopes import ClippedSlope
from basicsr_quant.quant.binary.weights import WeightBinarizer
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.folding import fold_into_norm
from basicsr_quant.quant.layers.weighted import frozen_weights
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

TOLERANCE = 3e-6
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def simulated(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), frozen_weights(network):
        result: torch.Tensor = network(x)
    return result


@given(quantized())
@few
def test_frozen_and_packed_layers_compute_the_simulation_to_the_bit(made: tuple[nn.Module, torch.Tensor]) -> None:
    network, x = made
    wanted = simulated(network, x)
    fresh = freeze(copy.deepcopy(network))
    with torch.no_grad():
        for tensor in (*fresh.parameters(), *fresh.buffers()):
            tensor.zero_()
    frozen = freeze(network)
    assert torch.equal(frozen(x), wanted)
    tensors = to_tensors(frozen, fresh, None)
    from_tensors(fresh, tensors)
    assert torch.equal(fresh(x), wanted)
    again = to_tensors(fresh, fresh, None)
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


@given(quantized())
@few
def test_reference_is_within_tolerance_of_the_simulation_in_float64(made: tuple[nn.Module, torch.Tensor]) -> None:
    network, x = made
    frozen = freeze(network)
    wanted = precise(frozen, x)
    found = Reference().attach(frozen)(x)
    assert found.dtype == x.dtype
    assert (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp_min(1e-3)


def precise(frozen: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The formula on the simulated, rounded input and the decoded weights, in float64."""
    layer = copy.deepcopy(frozen[0])  # type: ignore[index]
    if getattr(layer, "pads_input", False):
        x = nn.functional.pad(x, layer.pads)
        layer.pads_input = False
    seen = layer.quantized_input(x).double()
    weight, bias, border = layer.parts()
    layer._parts = type(layer.parts())(*(None if part is None else part.double() for part in (weight, bias, border)))
    layer.activation_quantizer, layer.let = None, None
    result: torch.Tensor = layer(seen)
    return result


def binary(sign_zero: str, scale: str, spatial: bool, bias: bool) -> BinaryConv2d:
    torch.manual_seed(3)
    layer = BinaryConv2d(3, 4, 3, WeightBinarizer(ClippedSlope(), scale, sign_zero),  # type: ignore[arg-type]
                         SignActivation(ClippedSlope(), sign_zero), bias, spatial)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight[1, 2, 0, 1] = 0
        layer.weight[3] = 0
    return layer


@pytest.mark.parametrize("sign_zero", ["zero", "plus_one"])
@pytest.mark.parametrize("scale", ["none", "layer", "channel", "power_of_two"])
def test_binary_layers_keep_every_bit_and_every_zero(sign_zero: str, scale: str) -> None:
    layer = nn.Sequential(binary(sign_zero, scale, scale == "layer", scale == "none")).eval()
    x = torch.randn(2, 3, 5, 6)
    x[0, 0, 0] = 0
    with torch.no_grad():
        wanted = layer(x)
    fresh = freeze(copy.deepcopy(layer))
    frozen = freeze(layer)
    tensors = to_tensors(frozen, fresh, None)
    assert tensors["codes"].numel() == -(-4 * 3 * 9 // 8)
    [(_, found)] = frozen_layers(fresh)
    assert isinstance(found, FrozenBinaryConv2d)
    found.signs.zero_()
    from_tensors(fresh, tensors)
    assert torch.equal(frozen(x), wanted) and torch.equal(fresh(x), wanted)
    assert torch.equal(Reference().attach(fresh)(x), wanted)


def test_a_frozen_layer_follows_to_another_dtype() -> None:
    network, x = torch.nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    plan = QuantPlan.parse([{"0": {"weight": {"bits": 4}, "activation": {"bits": 4}}}])
    network = prepare(network, plan).eval()
    calibrate(network, [x])
    frozen = freeze(network)
    assert isinstance(frozen[0], FrozenLinear)  # type: ignore[index]
    first = frozen(x)
    assert torch.allclose(frozen.double()(x.double()).float(), first, atol=1e-5)


def test_strides_are_those_of_an_ordinary_tensor() -> None:
    network = nn.Sequential(nn.Conv2d(6, 4, 1))
    plan = QuantPlan.parse([{"0": {"weight": {"bits": 3}, "activation": {"bits": 3}}}])
    frozen = freeze(prepare(network, plan))
    tensors = to_tensors(frozen, frozen, None)
    from_tensors(frozen, tensors)
    [(_, layer)] = frozen_layers(frozen)
    assert layer.weight_codes.stride() == torch.empty(4, 6, 1, 1).stride()  # type: ignore[union-attr, operator]


def test_folded_transformations_and_other_widths_are_facts() -> None:
    def prepared() -> nn.Module:
        torch.manual_seed(2)
        recipe = {"weight": {"bits": 4}, "activation": {"bits": 4}, "let": {}}
        return prepare(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)), QuantPlan.parse([{"1": recipe}])).eval()

    network, x = prepared(), torch.randn(2, 4, 6)
    layer = network[1]  # type: ignore[index]
    with torch.no_grad():
        layer.let.scale.value.uniform_(0.5, 2)
        layer.let.offset.normal_()
        for parameter in network[0].parameters():  # type: ignore[index]
            parameter.uniform_(0.5, 1)
    layer.activation_quantizer.set_bits(3)
    calibrate(network, [x])
    fold_into_norm(network[0], [layer])  # type: ignore[index]
    wanted = simulated(network, x)
    assert folded_layers(network) == ["1"]
    fresh = shell(prepared(), ["1"], {"1.activation_quantizer": 3})
    frozen = freeze(network)
    assert folded_layers(frozen) == ["1"]
    tensors = to_tensors(frozen, fresh, None)
    assert not any("scale" in name or "offset" in name for name in tensors if name != "scales")
    from_tensors(fresh, tensors)
    assert torch.equal(fresh(x), wanted)


@pytest.mark.parametrize(("change", "message"), [
    ({"codes": torch.zeros(3, dtype=torch.uint8)}, "bytes of codes"),
    ({"scales": torch.zeros(3)}, "scales and bounds"),
    ({"0.bias": torch.zeros(3)}, "has shape"),
    ({"0.bias": None}, "'0.bias' is missing"),
    ({"more": torch.zeros(1)}, "'more' is not part"),
    ({"buffer:more": torch.zeros(1)}, "'more' is not part"),
])
def test_tensors_that_do_not_fit(change: dict[str, torch.Tensor | None], message: str) -> None:
    plan = QuantPlan.parse([{"0": {"weight": {"bits": 4}}}])
    frozen = freeze(prepare(nn.Sequential(nn.Linear(4, 4)), plan))
    tensors = {name: value for name, value in {**to_tensors(frozen, frozen, None), **change}.items()
               if value is not None}
    with pytest.raises(ValueError, match=message):
        from_tensors(frozen, tensors)
