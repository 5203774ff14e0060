"""Native linear layers: codes and sums equal, outputs within 3e-6 of float64, at every level of instructions."""

from __future__ import annotations

import pytest
import torch
from layer_strategies import same_with_threads
from torch import nn

from basicsr_quant.deploy import native
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.frozen import FrozenLinear
from basicsr_quant.deploy.native.grids import ActivationGrid
from basicsr_quant.deploy.native.library import Library
from basicsr_quant.deploy.native.linear import LinearPart, NativeLinear
from basicsr_quant.deploy.runtimes.reference import ReferenceLayer
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.grids.base import Grid
from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid
from basicsr_quant.quant.grids.int_zero_point import IntZeroPointGrid
from basicsr_quant.quant.grids.symmetric_step import SymmetricStepGrid
from basicsr_quant.quant.layers.linear import SplitLinear
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler, or native kernels switched off")
GRIDS = {"float_offset": FloatOffsetGrid(), "int_zero_point": IntZeroPointGrid(), "symmetric_step": SymmetricStepGrid()}
SHAPES = [(64, 60, 60), (7, 60, 180), (1, 3, 5), (49, 33, 17), (100, 300, 70)]
TOLERANCE = 3e-6


@pytest.fixture(params=native.usable_levels())
def kernels(request: pytest.FixtureRequest) -> Library:
    return native.load_level(request.param)


def frozen(inputs: int, outputs: int, x: torch.Tensor, bits: int, grid: str = "float_offset", per: str = "tensor",
           bias: bool = True, parts: int = 1) -> nn.Module:
    torch.manual_seed(bits)
    weight = {"bits": bits, "grid": grid, "per": per}
    recipe = {"weight": weight, "activation": {"bits": bits, "grid": grid}, "split_out": parts}
    defaults = {name: {"observer": "minmax"} for name in ("weight", "activation")}
    model = prepare(nn.Sequential(nn.Linear(inputs, outputs * parts, bias=bias)),
                    QuantPlan.parse([{"0": recipe}], defaults))
    calibrate(model, [x * 0.7])
    return freeze(model)[0]  # type: ignore[index, no-any-return]


def tokens(rows: int, inputs: int) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(5)) + 0.3


def exact(layer: FrozenLinear, x: torch.Tensor) -> torch.Tensor:
    return ReferenceLayer(layer)(x)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_equal(grid: str, bits: int, kernels: Library) -> None:
    generator = torch.Generator().manual_seed(bits)
    for lower, upper in ((-1.3, 2.1), (0.0, 1.0), (-3e-3, 1e-3), (0.4, 0.9)):
        bounds = torch.tensor([lower]), torch.tensor([upper])
        step = (upper - lower) / (2**bits - 1)
        x = torch.randn(100001, generator=generator) * (upper - lower) + (upper + lower) / 2
        ties = torch.arange(-20, 2 * 2**bits).float() * (step / 2) + lower
        x = torch.cat([x, ties, torch.nextafter(ties, torch.tensor(9.0)), -ties, torch.tensor([1e9, -1e9, 0.0, -0.0])])
        quantizer: Grid = GRIDS[grid]
        found = ActivationGrid(quantizer, *bounds, bits).encode(x, kernels)
        assert torch.equal(found, quantizer.encode(x, *bounds, bits))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@torch.no_grad()
def test_sums_are_equal_and_outputs_close(shape: tuple[int, int, int], bits: int, kernels: Library) -> None:
    rows, inputs, outputs = shape
    x = tokens(rows, inputs)
    layer = frozen(inputs, outputs, x, bits)
    assert isinstance(layer, FrozenLinear)
    part, found = LinearPart.of(layer), NativeLinear.of(layer, kernels=kernels)
    codes = layer.activation_quantizer.encode(x).double() - part.activation.code_of_zero  # type: ignore[union-attr]
    assert torch.equal(found.sums(x).double(), codes @ (part.codes.double() - 2 ** (bits - 1)).T)
    wanted = exact(layer, x)
    assert (found(x) - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("per", ["tensor", "channel"])
@torch.no_grad()
def test_grids_and_granularity(grid: str, per: str, kernels: Library) -> None:
    x = tokens(30, 40)
    layer = frozen(40, 24, x, 6, grid, per, bias=False)
    assert isinstance(layer, FrozenLinear)
    wanted = exact(layer, x)
    assert (NativeLinear.of(layer, kernels=kernels)(x) - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@torch.no_grad()
def test_parts_norm_gelu_residual(kernels: Library) -> None:
    x = tokens(70, 60)
    norm = nn.LayerNorm(60)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    layer = frozen(60, 20, norm(x), 8, parts=3)
    assert isinstance(layer, SplitLinear)
    residual = torch.randn(70, 60)
    wanted = nn.functional.gelu(layer(norm(x))) + residual
    found = NativeLinear.of(layer, norm, gelu=True, kernels=kernels)(x, residual)
    off = (found - wanted).abs() > 1e-5
    assert off.float().mean() < 0.1
    assert (found - wanted).abs().max() < 0.05
    alone = NativeLinear.of(layer, norm, gelu=True, kernels=kernels)(x.view(7, 10, 60))
    assert torch.equal(alone.view(70, 60) + residual, found)


@torch.no_grad()
def test_threads_change_nothing() -> None:
    x = tokens(200, 60)
    assert same_with_threads(NativeLinear.of(frozen(60, 60, x, 4)), x)


@torch.no_grad()
def test_refused() -> None:
    x = tokens(8, 12)
    layer = frozen(12, 4, x, 4)
    found = NativeLinear.of(layer)
    for wrong in (lambda: found(x[:, :5]), lambda: found(x.double()), lambda: found(x, x),
                  lambda: NativeLinear.of(nn.Linear(3, 3)),
                  lambda: ActivationGrid(FloatOffsetGrid(), torch.tensor([1.0]), torch.tensor([0.5]), 4)):
        with pytest.raises(ValueError):
            wrong()
