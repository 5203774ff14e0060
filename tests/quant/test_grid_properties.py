"""What both grids must do for all tensors and bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid
from basicsr_quant.quant.grids.int_zero_point import IntZeroPointGrid, round_half_away, step_and_zero_point
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.quantizer import Quantizer, State

GRIDS = [FloatOffsetGrid(), IntZeroPointGrid("full"), IntZeroPointGrid("detached")]
both_grids = pytest.mark.parametrize("grid", GRIDS[:2], ids=["float_offset", "int_zero_point"])
all_grids = pytest.mark.parametrize("grid", GRIDS, ids=["float_offset", "int_full", "int_detached"])
bits = st.integers(1, 8)
seeds = st.integers(0, 2**31)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds of widths from 1e-3 to 1e3, at most ten widths from zero."""
    width = 10.0 ** draw(st.floats(-3, 3))
    lower = width * draw(st.floats(-10, 10))
    return torch.tensor([lower]), torch.tensor([lower + width])


def values(seed: int, lower: torch.Tensor, upper: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values in and around a range, both bounds among them."""
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.6 - 0.3
    inside = (lower.double() + uniform * (upper.double() - lower.double())).to(dtype)
    return torch.cat([inside, lower.to(dtype), upper.to(dtype)])


@both_grids
@given(ranges(), bits, seeds)
def test_idempotent_monotone_and_few_values(grid, bounds, bits: int, seed: int) -> None:
    x = values(seed, *bounds).sort().values
    rounded = grid.fake_quantize(x, *bounds, bits)
    torch.testing.assert_close(grid.fake_quantize(rounded, *bounds, bits), rounded, rtol=0, atol=0)
    assert (rounded.diff() >= 0).all()
    assert rounded.unique().numel() <= 2**bits


@both_grids
@given(ranges(), bits, seeds)
def test_codes_stand_for_the_rounded_values(grid, bounds, bits: int, seed: int) -> None:
    x = values(seed, *bounds)
    codes = grid.encode(x, *bounds, bits)
    assert codes.dtype == torch.uint8
    assert codes.max() <= 2**bits - 1
    assert torch.equal(grid.decode(codes, *bounds, bits), grid.fake_quantize(x, *bounds, bits))


@both_grids
@given(ranges(), bits, seeds)
def test_error_is_at_most_half_a_step_within_the_range(grid, bounds, bits: int, seed: int) -> None:
    lower, upper = (bound.double() for bound in bounds)
    x = values(seed, *bounds, torch.float64).clamp(lower, upper)
    step = (upper - lower) / (2**bits - 1)
    margin = 1.0 if isinstance(grid, IntZeroPointGrid) else 0.5
    assert ((grid.fake_quantize(x, lower, upper, bits) - x).abs() <= step * (margin + 1e-9)).all()


@all_grids
@given(bits, seeds)
def test_per_channel_is_per_tensor_on_each_channel(grid, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 5, generator=generator)
    lower = -torch.rand(3, 1, 1, generator=generator) - 0.1
    upper = torch.rand(3, 1, 1, generator=generator) + 0.1
    together = [tensor.clone().requires_grad_() for tensor in (x, lower, upper)]
    whole = grid.fake_quantize(*together, bits)
    whole.square().sum().backward()
    for channel in range(3):
        apart = [tensor[channel].clone().requires_grad_() for tensor in (x, lower.view(3, 1), upper.view(3, 1))]
        part = grid.fake_quantize(*apart, bits)
        assert torch.equal(part, whole[channel])
        part.square().sum().backward()
        for mine, theirs in zip(apart, together, strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad[channel].reshape(mine.shape), rtol=1e-4, atol=1e-4)


@both_grids
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(ranges(), bits, seeds)
@settings(max_examples=30)
def test_sixteen_bit_tensors_are_rounded_in_float32(grid, dtype, bounds, bits: int, seed: int) -> None:
    x = values(seed, *bounds, dtype)
    rounded = grid.fake_quantize(x, *bounds, bits)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, grid.fake_quantize(x.float(), *bounds, bits).to(dtype))
    assert torch.equal(grid.encode(x, *bounds, bits), grid.encode(x.float(), *bounds, bits))
    low, high = (bound.to(dtype) for bound in bounds)
    assert torch.equal(grid.fake_quantize(x, low, high, bits), grid.fake_quantize(x, low.float(), high.float(), bits))
    assert grid.decode(grid.encode(x, low, high, bits), low, high, bits).dtype == torch.float32


@both_grids
def test_autocast_changes_nothing(grid) -> None:
    x, lower, upper = torch.randn(100), torch.tensor([-1.1]), torch.tensor([0.9])
    with torch.autocast("cpu", torch.bfloat16):
        inside = grid.fake_quantize(x, lower, upper, 4)
    assert torch.equal(inside, grid.fake_quantize(x, lower, upper, 4))


@given(ranges(), bits, seeds)
def test_zero_is_on_the_integer_grid(bounds, bits: int, seed: int) -> None:
    lower, upper = bounds
    if lower <= 0 <= upper:
        assert IntZeroPointGrid().fake_quantize(torch.zeros(1), lower, upper, bits).item() == 0


@given(bits, seeds)
def test_crossed_bounds_give_the_constant_upper(bits: int, seed: int) -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(seed))
    lower, upper = torch.tensor([0.5]), torch.tensor([-0.25])
    rounded = FloatOffsetGrid().fake_quantize(x, lower, upper, bits)
    torch.testing.assert_close(rounded, upper.expand(50), rtol=0, atol=1e-7)
    assert torch.isfinite(IntZeroPointGrid().fake_quantize(x, lower, upper, bits)).all()


def surrogate(grid, x, lower, upper, levels: int, at: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The grid as a smooth function: rounding replaced by adding the residual that it has at the point ``at``."""
    x0, lower0, upper0 = at
    if isinstance(grid, FloatOffsetGrid):
        scaled0 = (x0.clamp(lower0, upper0) - lower0) / ((upper0 - lower0) / levels)
        clipped = torch.where(x0 <= lower0, lower, torch.where(x0 >= upper0, upper, x))
        step = (upper - lower) / levels
        return step * ((clipped - lower) / step + scaled0.round() - scaled0) + lower
    step0, zero0 = step_and_zero_point(lower0, upper0, levels)
    step = (upper - lower) / levels
    zero = zero0 + (lower / step - lower0 / step0 if grid.full else (lower - lower0) / step0)
    code0 = round_half_away(x0 / step0) - zero0
    inside = (code0 >= 0) & (code0 <= levels)
    at_code = x / step + round_half_away(x0 / step0) - x0 / step0 - zero
    return step * (torch.where(inside, at_code, code0.clamp(0, levels)) + zero)


@all_grids
@given(st.integers(2, 8), seeds)
@settings(max_examples=30)
def test_gradients_are_those_of_the_surrogate(grid, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, generator=generator, dtype=torch.float64)
    lower = -torch.rand(1, generator=generator, dtype=torch.float64) - 0.2
    upper = torch.rand(1, generator=generator, dtype=torch.float64) + 0.2
    weights = torch.randn(40, generator=generator, dtype=torch.float64)
    inputs = [tensor.clone().requires_grad_() for tensor in (x, lower, upper)]
    (grid.fake_quantize(*inputs, bits) * weights).sum().backward()
    at = (x, lower, upper)
    for index, tensor in enumerate(inputs):
        for element in range(0, tensor.numel(), 13):
            ends = []
            for shift in (1e-6, -1e-6):
                moved = [value.clone() for value in at]
                moved[index][element] += shift
                ends.append((surrogate(grid, *moved, 2**bits - 1, at) * weights).sum())
            assert tensor.grad[element].item() == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("grid", ["float_offset", "int_zero_point"])
@pytest.mark.parametrize("width", range(1, 9))
def test_few_values_after_learning(grid: str, width: int) -> None:
    torch.manual_seed(width)
    part = {"bits": width, "grid": grid}
    recipe = QuantPlan.parse([{"x": {"activation": part}}]).lines[0].recipe.activation
    quantizer, x = Quantizer(recipe), torch.randn(4000)
    quantizer.set_bounds(x.min(), x.max())
    assert quantizer(x).unique().numel() <= 2**width
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    before = (quantizer(x) - x).square().mean()
    for _ in range(10):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    after = quantizer(x).detach()
    assert after.unique().numel() <= 2**width
    assert (after - x).square().mean() < before or width > 5
    assert torch.equal(quantizer.decode(quantizer.encode(x)).detach(), after)


def test_states_of_a_quantizer() -> None:
    recipe = QuantPlan.parse([{"x": {"activation": {"bits": 2}}}]).lines[0].recipe.activation
    quantizer, x, seen = Quantizer(recipe), torch.tensor([-1.0, 0.2, 3.0]), []
    assert repr(quantizer) == "Quantizer(2b float_offset/tensor, quantize)"
    quantizer.state = State.OFF
    assert quantizer(x) is x
    quantizer.state, quantizer.watcher = State.OBSERVE, seen.append
    assert quantizer(x) is x
    assert torch.equal(seen[0], x)
    quantizer.state = State.DYNAMIC
    assert quantizer(x)[[0, 2]].tolist() == pytest.approx([-1, 3])
    quantizer.set_bits(8)
    assert quantizer.bits == 8
