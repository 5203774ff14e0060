"""Native binary convolutions against the simulation: equal to the bit, at every level of instructions."""

from __future__ import annotations

import pytest
import torch
from layer_strategies import same_with_threads
from torch import nn

from basicsr_quant.deploy import native
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.frozen import FrozenBinaryConv2d
from basicsr_quant.deploy.native.binary_conv import NativeBinaryConv, NativeBinaryUnit
from basicsr_quant.deploy.native.library import Library
from basicsr_quant.quant.binary import binarizers
from basicsr_quant.quant.binary.activations import SignActivation, StepActivation
from basicsr_quant.quant.binary.conv2d import BinaryConv2d
from basicsr_quant.quant.binary.shifts import RPReLU
from basicsr_quant.quant.binary.slopes import ClippedSlope
from basicsr_quant.quant.binary.unit import BinaryUnit
from basicsr_quant.quant.binary.weights import WeightBinarizer

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler, or native kernels switched off")
SHAPES = [(1, 64, 64, 8, 8), (2, 3, 5, 7, 9), (1, 65, 33, 5, 3), (2, 130, 40, 1, 6), (1, 32, 8, 4, 1), (1, 1, 1, 1, 1),
          (1, 64, 36, 3, 130)]


@pytest.fixture(params=native.usable_levels())
def kernels(request: pytest.FixtureRequest) -> Library:
    return native.load_level(request.param)


def layer(channels: int, outputs: int, side: int, activation: nn.Module | None, scale: str = "channel",
          bias: bool = False) -> BinaryConv2d:
    torch.manual_seed(side)
    binarizer = WeightBinarizer(ClippedSlope(), scale)  # type: ignore[arg-type]
    found = BinaryConv2d(channels, outputs, side, binarizer, activation, bias)
    nn.init.normal_(found.weight)
    return found


def image(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_equal(shape: tuple[int, ...], side: int, kernels: Library) -> None:
    batch, channels, outputs, height, width = shape
    simulated = layer(channels, outputs, side, SignActivation(ClippedSlope()), bias=True)
    x = image(batch, channels, height, width)
    found = NativeBinaryConv.of(FrozenBinaryConv2d(simulated), kernels)
    assert torch.equal(found(x), simulated(x))
    assert torch.equal(found(x.contiguous(memory_format=torch.channels_last)), simulated(x))


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("activation", [
    SignActivation(ClippedSlope(), "zero"), SignActivation(ClippedSlope(), "plus_one"), StepActivation(), None,
], ids=["zero", "plus_one", "step", "binary"])
@pytest.mark.parametrize("weight_zeros", [False, True])
@torch.no_grad()
def test_zeros_are_a_third_value(activation: nn.Module | None, side: int, weight_zeros: bool, kernels: Library) -> None:
    simulated = layer(70, 20, side, activation)
    if weight_zeros:
        simulated.weight[::2, ::3] = 0
    x = image(2, 70, 6, 5)
    x[:, ::4] = 0
    x[0, 1] = -0.0
    x[0, 2, 0] = 0.5
    if activation is None:
        x = x.sign()
    assert torch.equal(NativeBinaryConv.of(FrozenBinaryConv2d(simulated), kernels)(x), simulated(x))


@pytest.mark.parametrize("scale", ["none", "layer", "power_of_two"])
@torch.no_grad()
def test_scales(scale: str, kernels: Library) -> None:
    simulated = layer(64, 24, 3, SignActivation(ClippedSlope()), scale)
    x = image(1, 64, 5, 5)
    assert torch.equal(NativeBinaryConv.of(FrozenBinaryConv2d(simulated), kernels)(x), simulated(x))


@torch.no_grad()
def test_sums_against_float64(kernels: Library) -> None:
    signs = torch.randn(40, 96, 3, 3).sign()
    x = image(1, 96, 9, 10)
    wanted = nn.functional.conv2d(x.sign().double(), signs.double(), padding=1)
    found = NativeBinaryConv(signs, None, SignActivation(ClippedSlope()), kernels=kernels)(x)
    assert torch.equal(found.double(), wanted)


@pytest.mark.parametrize("make", [binarizers.bi_conv, binarizers.react_net, binarizers.bnn])
@pytest.mark.parametrize("group", [0, 2])
@torch.no_grad()
def test_units(make: object, group: int, kernels: Library) -> None:
    torch.manual_seed(0)
    unit = BinaryUnit(32, 32, 3, make(), 3, 3)  # type: ignore[operator]
    for name, parameter in unit.named_parameters():
        if "weight" not in name:
            nn.init.normal_(parameter)
    x = image(2, 32, 6, 7)
    groups = torch.tensor([group, 1])
    wanted, mixed = unit(x, group), unit(x, groups)
    found = NativeBinaryUnit(freeze(unit), kernels)  # type: ignore[arg-type]
    assert torch.equal(found(x, group), wanted)
    assert torch.equal(found(x, groups), mixed)
    assert torch.equal(found(x, groups[:1]), wanted)


@torch.no_grad()
def test_threads_change_nothing() -> None:
    simulated = layer(64, 64, 3, SignActivation(ClippedSlope()))
    assert same_with_threads(NativeBinaryConv.of(FrozenBinaryConv2d(simulated)), image(2, 64, 20, 20))


def test_refused() -> None:
    signs = torch.ones(4, 4, 5, 5)
    with pytest.raises(ValueError, match="1x1 or 3x3"):
        NativeBinaryConv(signs, None, None)
    with pytest.raises(ValueError, match="ReLU"):
        NativeBinaryConv(signs[..., :3, :3], None, nn.ReLU())
    found = NativeBinaryConv(signs[..., :3, :3], None, None)
    for wrong in (lambda: found(image(1, 5, 4, 4)), lambda: found(image(1, 4, 4, 4), shift=torch.zeros(3)),
                  lambda: found(image(1, 4, 4, 4), activation=RPReLU(5)), lambda: found(image(1, 4, 4, 4).double())):
        with pytest.raises(ValueError):
            wrong()
