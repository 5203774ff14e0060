"""LSQ: the grid with one learned step, its gradients and its initial step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_quant.errors import UserError
from basicsr_quant.quant.accounting import account
from basicsr_quant.quant.bounds import RelativeSteps, bound_parameters, order_keeper, range_scales
from basicsr_quant.quant.calibrate import calibrate, named_quantizers, run_passes
from basicsr_quant.quant.grids.symmetric_step import SymmetricStepGrid, step_bounds
from basicsr_quant.quant.observers.base import Target
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.registry import OBSERVERS

GRID = SymmetricStepGrid()
widths = st.integers(1, 8)
seeds = st.integers(0, 2**31)
signs = st.booleans()


def bounds_of_step(step: float, signed: bool, bits: int, dtype: torch.dtype = torch.float32) -> Any:
    return step_bounds(torch.tensor([step], dtype=dtype), torch.tensor([signed]), bits)


def values(seed: int, step: float, bits: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values in and around the range, with some that lie on the grid."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(300, generator=generator, dtype=torch.float64) * 3 - 1.5
    return torch.cat([spread * 2**bits * step, step * torch.arange(-3.0, 4)]).to(dtype)


@given(st.floats(-3, 2), widths, signs, seeds)
def test_rounded_values_are_the_formula_s(exponent: float, bits: int, signed: bool, seed: int) -> None:
    """Against clip(round(x / s), -Qn, Qp) s in float64, which has the same step for powers of two."""
    step = 2.0 ** round(exponent)
    negatives, positives = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    x = values(seed, step, bits)
    wanted = torch.clamp(torch.round(x.double() / step), -negatives, positives) * step
    rounded = GRID.fake_quantize(x, *bounds_of_step(step, signed, bits), bits)
    torch.testing.assert_close(rounded.double(), wanted, rtol=1e-6, atol=1e-7 * step)


@given(st.floats(-3, 2), widths, signs, seeds)
def test_codes_idempotence_and_order(exponent: float, bits: int, signed: bool, seed: int) -> None:
    bounds = bounds_of_step(10.0**exponent, signed, bits)
    x = values(seed, 10.0**exponent, bits).sort().values
    rounded = GRID.fake_quantize(x, *bounds, bits)
    codes = GRID.encode(x, *bounds, bits)
    assert codes.dtype == torch.uint8
    assert codes.max() <= 2**bits - 1
    assert torch.equal(GRID.decode(codes, *bounds, bits), rounded)
    assert torch.equal(GRID.fake_quantize(rounded, *bounds, bits), rounded)
    assert (rounded.diff() >= 0).all()
    assert rounded.unique().numel() <= 2**bits
    assert (GRID.fake_quantize(torch.zeros(1), *bounds, bits) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_tensors_are_rounded_in_float32(dtype: torch.dtype) -> None:
    x, bounds = values(0, 0.1, 4, dtype), bounds_of_step(0.1, True, 4)
    rounded = GRID.fake_quantize(x, *bounds, 4)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, GRID.fake_quantize(x.float(), *bounds, 4).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded, GRID.fake_quantize(x, *bounds, 4))


def published(x: torch.Tensor, step: torch.Tensor, negatives: int, positives: int) -> torch.Tensor:
    """LSQ from detached residuals, so that autograd gives its gradients: step scaled by g, rounding straight through.

    Elements that lie on an end of the range count as clipped.
    """
    factor = 1 / math.sqrt(x.numel() / step.numel() * max(positives, 1))
    step = step * factor + (step - step * factor).detach()
    scaled = x / step
    clipped = torch.where(scaled <= -negatives, torch.full_like(scaled, -negatives),
                          torch.where(scaled >= positives, torch.full_like(scaled, positives), scaled))
    return (clipped + (clipped.round() - clipped).detach()) * step


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(1,), (5, 1)])
@given(bits=widths, seed=seeds)
@settings(max_examples=15)
def test_gradients_are_the_paper_s(signed: bool, shape: tuple[int, ...], bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, 40, generator=generator, dtype=torch.float64)
    start = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.3 + 0.05
    negatives, positives = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    inputs = [[tensor.clone().requires_grad_() for tensor in (x, start)] for _ in range(2)]
    ours = GRID.fake_quantize(inputs[0][0], *step_bounds(inputs[0][1], torch.full(shape, signed), bits), bits)
    theirs = published(*inputs[1], negatives, positives)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for result in (ours, theirs):
        (result * weights).sum().backward()
    for mine, wanted in zip(*inputs, strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("codes", ["by_data", "signed"])
@pytest.mark.parametrize("one_sided", [True, False])
def test_initial_step(bits: int, codes: str, one_sided: bool) -> None:
    tensors = [torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    tensors = [tensor.abs() if one_sided else tensor for tensor in tensors]
    observer = OBSERVERS.build("step_size", Target(bits, GRID, 0), codes=codes)
    run_passes(observer, tensors)
    signed = codes == "signed" or not one_sided
    positives = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step = 2 * torch.cat(tensors, 1).double().abs().mean(1) / math.sqrt(max(positives, 1))
    lower, upper = observer.bounds()
    torch.testing.assert_close(upper.double(), positives * step, rtol=1e-6, atol=0)
    torch.testing.assert_close(lower.double(), -(2.0 ** (bits - 1)) * step * signed, rtol=1e-6, atol=0)


def test_unknown_choice() -> None:
    line = {"*": {"weight": {"bits": 4, "observer": {"type": "step_size", "codes": "unsigned"}}}}
    with pytest.raises(UserError, match="codes must be by_data or signed"):
        QuantPlan.parse([line])


def lsq_plan(bits: int) -> QuantPlan:
    weight = {"bits": bits, "grid": "symmetric_step", "per": "channel",
              "observer": {"type": "step_size", "codes": "signed"}}
    activation = {"bits": bits, "grid": "symmetric_step", "observer": "step_size"}
    return QuantPlan.parse([{"*": {"weight": weight, "activation": activation}}])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_network_learns_its_steps(perceptron, bits: int) -> None:
    perceptron.act = torch.nn.ReLU()
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    target = perceptron(x).detach()
    model = prepare(perceptron, lsq_plan(bits)).eval()
    calibrate(model, [x])
    signs = {name: bool((quantizer.lower_bound < 0).all()) for name, quantizer in named_quantizers(model)}
    assert signs == {"fc1.weight_quantizer": True, "fc1.activation_quantizer": True, "fc2.weight_quantizer": True,
                     "fc2.activation_quantizer": False}
    optimizer = torch.optim.Adam(bound_parameters(model), lr=3e-3)
    RelativeSteps(optimizer, range_scales(model))
    keep = order_keeper(model, 0.01)
    before = (model(x) - target).square().mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
        keep()
    assert (model(x) - target).square().mean().item() < before
    for name, quantizer in named_quantizers(model):
        assert bool((quantizer.lower_bound < 0).all()) == signs[name]
        assert quantizer(torch.randn(1, 1000).expand(len(quantizer.lower_bound), -1))[0].unique().numel() <= 2**bits
    again = prepare(type(perceptron)(), lsq_plan(bits)).eval()
    again.act = torch.nn.ReLU()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


def test_accounting_counts_codes(perceptron) -> None:
    counted = account(prepare(perceptron, lsq_plan(4)), (2, 6))
    assert counted.codes == {"fc1.weight_quantizer": (48, 4), "fc2.weight_quantizer": (48, 4)}
    assert counted.bounds == 2 * (8 + 6 + 2)


def test_unsigned_lower_bound_stays_zero() -> None:
    lower, upper = (bound.requires_grad_() for bound in bounds_of_step(0.1, False, 4))
    GRID.fake_quantize(torch.rand(50), lower, upper, 4).sum().backward()
    assert lower.grad.item() == 0
    assert upper.grad.item() != 0
