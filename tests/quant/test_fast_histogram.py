"""The numba passes of the bound search give what plain torch gives."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch

from basicsr_quant.quant import fast
from basicsr_quant.quant.calibrate import run_passes
from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid
from basicsr_quant.quant.observers import fast_histogram
from basicsr_quant.quant.observers import histogram as histogram_module
from basicsr_quant.quant.observers.base import Target
from basicsr_quant.quant.observers.dobi import DobiObserver
from basicsr_quant.quant.observers.histogram import Histogram
from basicsr_quant.registry import OBSERVERS

GRID = FloatOffsetGrid()
SIZE = 2**16 + 37

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(SIZE, generator=generator)
    return {
        "normal": normal,
        "long_tail": normal * normal.abs() ** 3,
        "softmax": torch.randn(SIZE // 64, 64, generator=generator).mul(3).softmax(-1).reshape(-1),
        "gelu": torch.nn.functional.gelu(normal),
        "double": normal.double(),
        "channels": normal[:2**16].reshape(4, -1) * torch.tensor([[1.0], [0.01], [300.0], [-1.0]]),
        "strided": normal[:2**16].reshape(256, 256).t(),
        "constant": torch.full((SIZE,), 0.5),
    }


@pytest.fixture(params=list(tensors()))
def x(request: pytest.FixtureRequest) -> torch.Tensor:
    return tensors()[request.param]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Context in which numba is off."""
    def switch(off: bool) -> None:
        monkeypatch.setenv(fast.SWITCH, "0" if off else "1")

    return switch


def rows_of(x: torch.Tensor, axis: int | None) -> torch.Tensor:
    return x if axis == 0 else x.reshape(1, -1)


@needs_numba
@pytest.mark.parametrize("bins", [1, 4096, 65536])
def test_histogram_is_the_same(x: torch.Tensor, bins: int, plain: Any) -> None:
    rows = rows_of(x, 0 if x.dim() == 2 else None)
    found = []
    for off in (True, False):
        plain(off)
        assert fast_histogram.usable(rows) is not off
        low, high = torch.aminmax(rows, dim=1)
        histogram = Histogram(low, high, bins)
        histogram.add(rows)
        histogram.add(rows)
        found.append(histogram)
    torch_s, numba_s = found
    assert torch.equal(numba_s.counts, torch_s.counts)
    assert numba_s.counts.sum() == 2 * rows.numel()
    torch.testing.assert_close(numba_s.sums, torch_s.sums, rtol=1e-12, atol=1e-12 * float(rows.abs().max()))
    torch.testing.assert_close(numba_s.squares, torch_s.squares, rtol=1e-12, atol=0)


@needs_numba
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_exact_errors_are_the_same(x: torch.Tensor, bits: int, plain: Any) -> None:
    axis = 0 if x.dim() == 2 else None
    rows = rows_of(x, axis)
    observer = DobiObserver(Target(bits, GRID, axis))
    low, high = (bound[:, None].to(rows.dtype) for bound in torch.aminmax(rows, dim=1))
    high = torch.maximum(high, low + 1e-3)
    part = torch.tensor([[0.0, 0.11, 0.37]], dtype=rows.dtype)
    lower, upper = low + part * (high - low), high - part * (high - low)
    errors = []
    for off in (True, False):
        plain(off)
        errors.append(observer._exact_errors(rows, lower, upper))
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-12, atol=0)


@needs_numba
@pytest.mark.parametrize("search", ["two_sided", "one_sided", "free"])
@pytest.mark.parametrize("name", ["dobi", "percentile"])
def test_bounds_are_the_same(x: torch.Tensor, name: str, search: str, plain: Any) -> None:
    arguments: dict[str, Any] = {"search": search, "candidates": 30} if name == "dobi" else {}
    bounds = []
    for off in (True, False):
        plain(off)
        observer = OBSERVERS.build(name, Target(3, GRID, 0 if x.dim() == 2 else None), **arguments)
        run_passes(observer, [x])
        bounds.append(observer.bounds())
    for mine, theirs in zip(*bounds, strict=True):
        assert torch.equal(mine, theirs) or torch.isnan(mine).all() and torch.isnan(theirs).all()


@needs_numba
def test_threads_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tensors()["normal"][None]
    monkeypatch.setattr(fast_histogram, "PIECE", 1000)
    low, high = torch.aminmax(x, dim=1)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        histogram = Histogram(low, high, 512)
        histogram.add(x)
        found.append((histogram, fast_histogram.squared_errors(x, low[:, None], high[:, None], 15)))
    (one, one_error), (three, three_error) = found
    assert torch.equal(one.counts, three.counts)
    torch.testing.assert_close(one.sums, three.sums, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one_error, three_error, rtol=1e-12, atol=0)


def test_small_tensors_and_the_switch(plain: Any) -> None:
    plain(False)
    assert not fast_histogram.usable(torch.zeros(1, 100))
    plain(True)
    assert not fast_histogram.usable(torch.zeros(1, SIZE))


def test_a_grid_of_another_kind_is_scored_by_itself() -> None:
    class Coarse(FloatOffsetGrid):
        pass

    class Other:
        fake_quantize = staticmethod(lambda x, lower, upper, bits: torch.zeros_like(x))

    rows = tensors()["normal"][None]
    bounds = torch.tensor([[-1.0]]), torch.tensor([[1.0]])
    for grid, same in ((Coarse(), False), (Other(), True)):
        observer = DobiObserver(Target(4, grid, None))  # type: ignore[arg-type]
        error = observer._exact_errors(rows, *bounds)
        assert bool(torch.isclose(error, rows.double().square().sum())) is same


def test_without_numba_or_with_a_broken_one() -> None:
    """In a process of its own: plain torch is used, silently without numba, with one warning if it does not import."""
    script = (
        "import importlib.util, sys, logging, torch\n"
        "logging.basicConfig(format='%(message)s')\n"
        "from basicsr_quant.quant import fast\n"
        "from basicsr_quant.quant.observers.fast_histogram import usable\n"
        "if sys.argv[1] == 'absent':\n"
        "    fast.importlib.util.find_spec = lambda name: None\n"
        "else:\n"
        "    sys.modules['numba'] = None\n"
        "    fast.importlib.util.find_spec = lambda name: object()\n"
        "print([usable(torch.zeros(1, 100000)) for _ in range(2)])\n"
    )
    for state, warnings in (("absent", 0), ("broken", 1)):
        done = subprocess.run([sys.executable, "-c", script, state], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == "[False, False]"
        assert done.stderr.count("numba cannot be imported") == warnings


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_estimate_is_never_too_low_nor_further_off_than_it_says(x: torch.Tensor, bits: int, plain: Any) -> None:
    plain(True)
    rows = rows_of(x[:3000], 0 if x.dim() == 2 else None)
    observer = DobiObserver(Target(bits, GRID, 0 if x.dim() == 2 else None))
    run_passes(observer, [rows.squeeze(0)])
    if (observer.minimum == observer.maximum).all():
        return
    lower, upper = (bound.double() for bound in observer.grid_of_candidates())
    exact = torch.stack([(rows - GRID.fake_quantize(rows.double(), low[:, None], high[:, None], bits)).square().sum(1)
                         for low, high in zip(lower.T, upper.T, strict=True)], dim=1)
    histogram = observer._histogram
    assert histogram is not None
    above = histogram.squared_error(lower, upper, 2**bits - 1) - exact
    assert (above >= -1e-9 * exact - 1e-12 * histogram.squares[:, None]).all()
    assert (above <= histogram.overestimate(lower, upper, 2**bits - 1)).all()
    assert observer._finalists is not None
    rtol = 1e-6 if bits < 8 else 1e-4  # the float32 arithmetic of the grid itself shows at 8 bits
    torch.testing.assert_close(observer.squared_error(), exact.amin(1), rtol=rtol, atol=0)


def test_deterministic_sums_are_the_same(monkeypatch: pytest.MonkeyPatch, plain: Any) -> None:
    """What CUDA runs under ``deterministic: true``, where bincount with weights and cumsum are refused."""
    plain(True)
    x = tensors()["channels"]
    found = []
    for on in (False, True):
        monkeypatch.setattr(histogram_module, "deterministic", lambda values, on=on: on)
        observer = DobiObserver(Target(3, GRID, 0))
        run_passes(observer, [x])
        assert observer._histogram is not None
        found.append((observer._histogram.sums, *observer.bounds()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-12, atol=1e-9)
    assert torch.equal(found[1][1], found[0][1]) and torch.equal(found[1][2], found[0][2])


@pytest.mark.gpu
def test_deterministic_search_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = tensors()["normal"].cuda()
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            for name in ("dobi", "percentile"):
                observer = OBSERVERS.build(name, Target(3, GRID, None))
                run_passes(observer, [x])
                found.append(torch.stack(observer.bounds()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


def test_finalists_that_cannot_win_are_not_scored() -> None:
    observer = DobiObserver(Target(2, GRID, None))
    run_passes(observer, [tensors()["normal"]])
    assert observer._finalists is not None
    assert observer._finalists[0].shape == (1, 1)
