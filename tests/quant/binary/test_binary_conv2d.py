"""Binary weights and convolutions, against the released code and against formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.quant.binary.activations import SignActivation
from basicsr_quant.quant.binary.conv2d import BinaryConv2d, clamp_latent_weights, frozen_binary_weights
from basicsr_quant.quant.binary.slopes import ClippedSlope, ErrorDecaySlope, PolynomialSlope, ScaledClippedSlope, Slope
from basicsr_quant.quant.binary.weights import WeightBinarizer


def _value(binarizer: WeightBinarizer, weight: torch.Tensor) -> torch.Tensor:
    signs, scale = binarizer(weight)
    return signs if scale is None else signs * scale


def _gradient(binarizer: WeightBinarizer, weight: torch.Tensor, incoming: torch.Tensor) -> torch.Tensor:
    weight = weight.clone().requires_grad_()
    _value(binarizer, weight).backward(incoming)
    assert weight.grad is not None
    return weight.grad


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def incoming() -> torch.Tensor:
    return torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("suffix", "dtype", "tolerance"),
                         [("f32", torch.float32, 1e-5), ("f64", torch.float64, 1e-10)])
def test_released_convolution(recorded, suffix: str, dtype: torch.dtype, tolerance: float) -> None:
    tensors = {name: value.to(dtype) for name, value in recorded("hard_binary_conv").items()}
    layer = BinaryConv2d(6, 8, 3, WeightBinarizer(ClippedSlope()), None, bias=True).to(dtype)
    layer.load_state_dict({"weight": tensors["weight"], "bias": tensors["bias"]})
    x = tensors["x"].clone().requires_grad_()
    y = layer(x)
    y.backward(tensors["grad_out"])
    for name, value in (("y", y), ("dx", x.grad), ("dw", layer.weight.grad), ("db", layer.bias.grad)):
        torch.testing.assert_close(value, tensors[f"{name}_{suffix}"], rtol=tolerance, atol=tolerance)
    signs, scale = layer.binary_weight()
    expected = torch.where(tensors["scale"] == 0, 1.0, tensors["scale"])
    torch.testing.assert_close(scale.flatten(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(signs, layer.weight.sign()) and not signs[2].any()


def test_every_weight_is_exactly_plus_or_minus_its_scale() -> None:
    weight = torch.randn(16, 8, 3, 3)
    value = _value(WeightBinarizer(ClippedSlope()), weight.requires_grad_())
    assert torch.equal(value.abs(), weight.detach().abs().mean((1, 2, 3), keepdim=True).expand_as(value))


def test_scales(weight: torch.Tensor) -> None:
    scales = {name: WeightBinarizer(Slope(), name)(weight)[1] for name in ("none", "layer", "channel")}
    assert scales["none"] is None
    torch.testing.assert_close(scales["layer"].flatten()[0], weight.abs().mean())
    torch.testing.assert_close(scales["channel"].flatten(), weight.abs().flatten(1).mean(1))
    powers = WeightBinarizer(Slope(), "power_of_two")(weight * 3)[1].flatten()
    means = (weight * 3).abs().flatten(1).mean(1).tolist()
    assert powers.tolist() == [2.0 ** round(math.log2(mean)) for mean in means]


def test_zero_weights() -> None:
    weight = torch.zeros(1, 2, 1, 1)
    weight[0, 0] = 4
    for scale in ("channel", "layer"):
        assert _value(WeightBinarizer(Slope(), scale), weight).flatten().tolist() == [2, 0]
        assert _value(WeightBinarizer(Slope(), scale, "plus_one"), weight).flatten().tolist() == [2, 2]
        assert _value(WeightBinarizer(Slope(), scale, "plus_one"), weight * 0).flatten().tolist() == [0, 0]


def test_a_channel_of_zeros_still_learns() -> None:
    incoming = torch.ones(2, 1, 1, 1)
    for zero in ("zero", "plus_one"):
        assert _gradient(WeightBinarizer(ClippedSlope(), "channel", zero), torch.zeros(2, 1, 1, 1), incoming).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_exact_in_any_order(dtype: torch.dtype) -> None:
    """A sum of zero is zero, so that no rounding error decides which side of an RPReLU's kink it is on."""
    torch.manual_seed(0)
    layer = BinaryConv2d(16, 8, 3, WeightBinarizer(ClippedSlope()), SignActivation(PolynomialSlope())).to(dtype)
    x = torch.randn(2, 16, 8, 8, dtype=dtype)
    y = layer(x)
    order = torch.randperm(16)
    signs = layer.weight.detach()[:, order].sign()
    again = functional.conv2d(x[:, order].sign(), signs, padding=1) * layer.binary_weight()[1].view(1, -1, 1, 1)
    assert torch.equal(y, again) and (y == 0).any()


def test_weight_gradients(weight: torch.Tensor, incoming: torch.Tensor) -> None:
    inside = (weight.abs() <= 1).double()
    scale = weight.abs().mean((1, 2, 3), keepdim=True)
    expected = {ClippedSlope: inside, Slope: torch.ones_like(inside), ScaledClippedSlope: 1 / 27 + scale * inside}
    for slope, factor in expected.items():
        torch.testing.assert_close(_gradient(WeightBinarizer(slope()), weight, incoming), incoming * factor)


def test_standardized_weights_as_in_ir_net(weight: torch.Tensor, incoming: torch.Tensor) -> None:
    binarizer = WeightBinarizer(ErrorDecaySlope(), "power_of_two", standardize=True)
    latent = weight.clone().requires_grad_()
    standard = (latent - latent.mean((1, 2, 3), keepdim=True)) / latent.std((1, 2, 3), keepdim=True)
    power = torch.exp2(standard.detach().abs().mean((1, 2, 3), keepdim=True).log2().round())
    assert torch.equal(_value(binarizer, weight), standard.detach().sign() * power)
    surrogate = power * 10 * 0.1 * (1 - torch.tanh(0.1 * standard.detach()).square())
    standard.backward(incoming * surrogate)
    torch.testing.assert_close(_gradient(binarizer, weight, incoming), latent.grad)
    flat = torch.zeros(2, 1, 1, 1, requires_grad=True)
    binarizer(flat.expand(2, 4, 1, 1))[0].sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_spatial_scale_is_the_mean_magnitude_under_the_kernel(weight: torch.Tensor) -> None:
    layer = BinaryConv2d(3, 4, 3, WeightBinarizer(Slope()), SignActivation(ClippedSlope()), spatial_scale=True).double()
    layer.load_state_dict({"weight": weight})
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    box = functional.conv2d(x.abs().mean(1, keepdim=True), torch.full((1, 1, 3, 3), 1 / 9).double(), padding=1)
    binary = _value(layer.weight_binarizer, weight)
    plain = functional.conv2d(x.sign(), binary, padding=1)
    torch.testing.assert_close(layer(x), plain * box)
    layer(x).sum().backward()
    expected = functional.conv_transpose2d(box.detach().expand_as(plain), binary, padding=1) * (x.abs() <= 1)
    torch.testing.assert_close(x.grad, expected)


def test_border_counts_nothing() -> None:
    layer = BinaryConv2d(2, 1, 3, WeightBinarizer(Slope(), "none"), SignActivation(PolynomialSlope()))
    nn.init.ones_(layer.weight)
    counts = layer(torch.ones(1, 2, 3, 3))[0, 0]
    assert counts.tolist() == [[8, 12, 8], [12, 18, 12], [8, 12, 8]]


def test_frozen_weights_are_made_binary_once() -> None:
    layer = BinaryConv2d(3, 4, 3, WeightBinarizer(ClippedSlope()), SignActivation(PolynomialSlope()))
    calls: list[int] = []
    layer.weight_binarizer.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = layer(x)
        calls.clear()
        with frozen_binary_weights(layer):
            assert torch.equal(layer(x), expected) and torch.equal(layer(x), expected)
        assert len(calls) == 1
        nn.init.zeros_(layer.weight)
        assert not layer(x).any()


def test_latent_weights_are_clamped_where_asked_for() -> None:
    for bound, largest in ((1.0, 1.0), (None, 5.0)):
        layer = BinaryConv2d(1, 1, 1, WeightBinarizer(ClippedSlope(), latent_bound=bound), None)
        nn.init.constant_(layer.weight, 5.0)
        clamp_latent_weights(layer)
        assert layer.weight.flatten().tolist() == [largest]
