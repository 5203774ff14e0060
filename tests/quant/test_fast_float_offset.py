"""The numba passes of the grid give what plain torch gives."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from basicsr_quant.quant import fast
from basicsr_quant.quant.grids import fast_float_offset
from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid, clip

GRID = FloatOffsetGrid()
SIZE = 2**18 + 37

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


@pytest.fixture
def numba(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switches numba on or off."""
    return lambda on: monkeypatch.setenv(fast.SWITCH, "1" if on else "0")


def bound(value: float) -> torch.Tensor:
    return torch.tensor([value])


def values(lower: torch.Tensor, upper: torch.Tensor, bits: int, seed: int = 0) -> torch.Tensor:
    """Random values in and around a range, all codes, all halves between them, and their neighbours."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(SIZE, generator=generator) * 1.6 - 0.3
    levels = 2**bits - 1
    halves = lower + (upper - lower) / levels * torch.arange(0, levels + 0.5, 0.5)
    exact = torch.cat([halves, lower, upper])
    away = [torch.nextafter(exact, torch.tensor(towards)) for towards in (-torch.inf, torch.inf)]
    special = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38])
    return torch.cat([lower + uniform * (upper - lower), exact, *away, special])


def both(numba: Callable[[bool], None], x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int,
         gradient: torch.Tensor | None = None) -> list[list[torch.Tensor]]:
    """Return [result, gradients of x, lower, upper] without numba and with it."""
    found = []
    for on in (False, True):
        numba(on)
        inputs = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()
                  for tensor in (x, lower, upper)]
        assert fast_float_offset.usable(*inputs) is on
        rounded = GRID.fake_quantize(*inputs, bits)
        g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) if gradient is None else gradient
        found.append([rounded.detach(), *torch.autograd.grad(rounded, inputs, g)])
    return found


def same(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Return whether two tensors have the same bits; all NaN and both zeros count as one."""
    return mine.shape == theirs.shape and bool(((mine == theirs) | (mine.isnan() & theirs.isnan())).all())


BOUNDS = [(-1.0, 1.0), (-0.0731, 2.417), (0.3, 0.30001), (-412.5, -3.25), (1e-6, 3e-6), (0.5, -0.25), (0.7, 0.7)]


@needs_numba
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_values_and_gradients(numba: Any, bounds: tuple[float, float], bits: int) -> None:
    lower, upper = map(bound, bounds)
    x = values(lower, upper, bits, seed=bits)
    plain, quick = both(numba, x, lower, upper, bits)
    for theirs, mine in zip(plain[:2], quick[:2], strict=True):
        assert same(mine, theirs)
    g64 = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    if bounds[0] == bounds[1]:
        assert plain[2].isnan().all() and quick[2].isnan().all()
        return
    code = (torch.clamp(x, lower, upper) - lower) / ((upper - lower) / (2**bits - 1))
    through_step = ((code.round() - code).double() * g64).sum() / (2**bits - 1)
    exact = (g64[x <= lower].sum() - through_step, g64[x >= upper].sum() + through_step)
    scale = float(g64.abs().sum())
    for theirs, mine, truth in zip(plain[2:], quick[2:], exact, strict=True):
        assert abs(float(mine) - float(truth)) <= 1e-8 * scale
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6 * scale)


@needs_numba
def test_sums_are_no_less_exact_than_those_of_torch(numba: Any) -> None:
    errors = torch.zeros(2)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x, gradient = torch.randn(2, 2**19, generator=generator)
        lower, upper = bound(-1.2), bound(0.8)
        truth = float(gradient.double()[x >= upper].sum() + (_residual(x, lower, upper) * gradient.double()).sum() / 15)
        for place, found in enumerate(both(numba, x, lower, upper, 4, gradient)):
            errors[place] += (float(found[3]) - truth) ** 2
    assert errors[1] <= errors[0]


def _residual(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    code = (torch.clamp(x, lower, upper) - lower) / ((upper - lower) / 15)
    return (code.round() - code).double()


@needs_numba
@pytest.mark.parametrize("seed", range(4))
def test_a_million_random_bits(numba: Any, seed: int) -> None:
    """Every float32 there is, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2**31, 2**31, (2**20,), generator=generator).to(torch.int32).view(torch.float32)
    x[::7] = torch.randn(len(x[::7]), generator=generator)
    lower, upper = torch.randn(2, 1, generator=generator)
    numba(True)
    rounded = GRID.fake_quantize(x, lower, upper, 4)
    numba(False)
    assert same(rounded, GRID.fake_quantize(x, lower, upper, 4))
    assert same(clip(x, lower, upper), torch.clamp(x, lower, upper))
    finite = x.nan_to_num(0.0, 1e30, -1e30)
    plain, quick = both(numba, finite, lower, upper, 4)
    assert same(plain[1], quick[1])


@needs_numba
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["x", "lower", "upper", "gradient"])
def test_nan_and_infinity(numba: Any, place: str, bad: float) -> None:
    tensors = {"x": torch.randn(5000), "lower": bound(-1.0), "upper": bound(1.5), "gradient": torch.randn(5000)}
    tensors[place][0] = bad
    x, lower, upper, gradient = tensors.values()
    plain, quick = both(numba, x, lower, upper, 3, gradient)
    assert same(quick[0], plain[0]) and same(quick[1], plain[1])
    if place != "gradient":
        for mine, theirs in zip(quick[2:], plain[2:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert not any(quick[2].isfinite() and not plain[2].isfinite() for _ in (place,) if place != "gradient")


@needs_numba
def test_an_element_on_a_bound_counts_for_both(numba: Any) -> None:
    x = torch.cat([torch.full((1000,), -1.0), torch.full((2000,), 1.0)])
    for found in both(numba, x, bound(-1.0), bound(1.0), 2, torch.ones(3000)):
        assert torch.equal(found[1], torch.ones(3000))
        assert (float(found[2]), float(found[3])) == (1000, 2000)


@needs_numba
@pytest.mark.parametrize("shape", [(6, 700), (6, 5, 3, 80)])
def test_bounds_per_channel(numba: Any, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, channels = torch.randn(shape, generator=generator), (6,) + (1,) * (len(shape) - 1)
    lower, upper = (sign * torch.rand(channels, generator=generator) - 0.1 for sign in (-1, 1))
    plain, quick = both(numba, x, lower, upper, 4)
    assert torch.equal(quick[0], plain[0]) and torch.equal(quick[1], plain[1])
    torch.testing.assert_close(quick[2:], plain[2:], rtol=1e-4, atol=1e-4)
    strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    assert torch.equal(both(numba, strided, lower, upper, 4)[1][1], quick[1])


@needs_numba
def test_strided_tensors(numba: Any) -> None:
    packed = torch.randn(8, 64, 3, 6, 10)
    views = [packed[:, :, 1].transpose(1, 2), packed[:, :, 0].permute(2, 0, 3, 1), packed[::2], packed[:, 1:2]]
    views += [packed.transpose(-1, -2), packed.permute(4, 1, 0, 2, 3), packed[3:4].transpose(-1, -2)]
    for x in views:
        gradient = torch.randn(x.shape).transpose(-1, -2).contiguous().transpose(-1, -2)
        numba(True)
        torch.testing.assert_close(GRID.fake_quantize(x, bound(-1.0), bound(1.1), 4).stride(),
                                   torch.empty_like(x).stride())
        plain, quick = both(numba, x, bound(-1.0), bound(1.1), 4, gradient)
        assert torch.equal(quick[0], plain[0]) and torch.equal(quick[1], plain[1])
        torch.testing.assert_close(quick[2:], plain[2:], rtol=1e-4, atol=1e-4)
        plain, quick = both(numba, x, bound(-1.0), bound(1.1), 4, torch.ones(()).expand(x.shape))
        assert torch.equal(quick[1], plain[1])


@needs_numba
@pytest.mark.parametrize("elements", [SIZE, 3 * 2**12 + 1])
def test_threads_share_the_work(numba: Any, monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(fast_float_offset, "PIECE", 1000)
    x = torch.randn(elements)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(both(numba, x, bound(-0.9), bound(1.3), 4)[1])
    one, three = found
    assert torch.equal(one[0], three[0]) and torch.equal(one[1], three[1])
    torch.testing.assert_close(three[2:], one[2:], rtol=1e-4, atol=1e-4)


@needs_numba
def test_what_goes_on_in_torch(numba: Any) -> None:
    numba(True)
    x, lower, upper = torch.randn(2, 4000), bound(-1.0), bound(1.0)
    usable = fast_float_offset.usable
    assert usable(x, lower, upper)
    assert usable(x, torch.tensor(-1.0), torch.tensor(1.0))
    assert not usable(x.double(), lower, upper)
    assert not usable(x, lower.double(), upper.double())
    assert not usable(x[:, :10], lower, upper)
    assert not usable(x, lower.view(1, 1, 1), upper.view(1, 1, 1))
    assert not usable(x, lower.expand(1, 4000), upper.expand(1, 4000))
    assert not usable(x, lower.expand(2, 1), upper)
    assert not usable(x.to("meta"), lower.to("meta"), upper.to("meta"))
    numba(False)
    assert not usable(x, lower, upper)


@needs_numba
def test_frozen_inputs_and_double_use(numba: Any) -> None:
    numba(True)
    x, lower, upper = torch.randn(4000), bound(-1.0).requires_grad_(), bound(1.0).requires_grad_()
    GRID.fake_quantize(x, lower, upper, 4).sum().backward()
    assert lower.grad is not None and x.grad is None
    x.requires_grad_()
    frozen = GRID.fake_quantize(x, lower.detach(), upper.detach(), 4)
    (frozen + GRID.fake_quantize(frozen, lower, upper, 4)).sum().backward()
    inside = (x.detach().abs() <= 1).float()
    assert torch.equal(x.grad, 2 * inside)


@needs_numba
def test_traced_networks_hold_torch_operations(numba: Any) -> None:
    numba(True)
    x = torch.randn(4000)
    traced = torch.jit.trace(lambda value: GRID.fake_quantize(value, bound(-1.0), bound(1.0), 4), x, check_trace=False)
    assert torch.equal(traced(2 * x), GRID.fake_quantize(2 * x, bound(-1.0), bound(1.0), 4))
