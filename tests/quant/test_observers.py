"""Observers on single tensors: which bounds they choose, whatever the batches, their order and the channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from basicsr_quant.quant.calibrate import run_passes
from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid
from basicsr_quant.quant.observers.base import Target
from basicsr_quant.registry import OBSERVERS

GRID = FloatOffsetGrid()
PER_ORDER = ["minmax", "percentile", "dobi"]
Bounds = tuple[torch.Tensor, torch.Tensor]


def bounds_of(
    name: str, tensors: list[torch.Tensor], bits: int = 3, axis: int | None = None, **arguments: Any
) -> Bounds:
    observer = OBSERVERS.build(name, Target(bits, GRID, axis), **arguments)
    run_passes(observer, tensors)
    return observer.bounds()


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_minmax() -> None:
    lower, upper = bounds_of("minmax", [torch.tensor([1.0, 4.0]), torch.tensor([-2.0, 3.0])])
    assert (lower.item(), upper.item()) == (-2, 4)


def test_ema_minmax() -> None:
    lower, upper = bounds_of("ema_minmax", [torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 3.0])], momentum=0.75)
    assert (lower.item(), upper.item()) == (-0.25, 1.5)


def dbdc_reference(x: np.ndarray, clip: float, bins: int = 2048) -> tuple[float, float]:
    """Specification 6.1, steps 1 to 3, by a loop in float64."""
    x = x.astype(np.float64)
    width = (x.max() - x.min()) / bins
    counts = np.bincount(np.minimum(((x - x.min()) / width).astype(int), bins - 1), minlength=bins)
    low, high = 0, bins - 1
    while counts[low:high + 1].sum() > (1 - clip) * x.size:
        if counts[low] < counts[high]:
            low += 1
        else:
            high -= 1
    return x.min() + width * low, x.min() + width * (high + 1)


@pytest.mark.parametrize("clip", [0.0, 1e-4, 0.01, 0.3])
@pytest.mark.parametrize("skewed", [False, True])
def test_dbdc(clip: float, skewed: bool) -> None:
    """The average of what is left of each batch, whatever its size; a bin may go to a neighbour by rounding."""
    batches = [normal(seed, 1000 * (seed + 1)) for seed in range(3)]
    batches = [batch.exp() for batch in batches] if skewed else batches
    found = bounds_of("dbdc", batches, clip=clip)
    wanted = np.mean([dbdc_reference(batch.numpy(), clip) for batch in batches], axis=0)
    width = np.mean([float(batch.max() - batch.min()) / 2048 for batch in batches])
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.item() == pytest.approx(theirs, abs=2.01 * width)
    if clip == 0:
        assert found[1].item() == pytest.approx(np.mean([float(batch.max()) for batch in batches]), rel=1e-6)


@pytest.mark.parametrize("percentile", [60, 99, 99.9, 100])
def test_percentile_is_numpy_s_within_a_bin(percentile: float) -> None:
    x = normal(0, 20000)
    lower, upper = bounds_of("percentile", [x], percentile=percentile)
    # Between two neighbouring elements numpy interpolates, the histogram within its bin: allow that gap and one bin.
    for found, q in ((lower, 100 - percentile), (upper, percentile)):
        low, high = (np.percentile(x, q, method=method) for method in ("lower", "higher"))
        bin_width = float(x.max() - x.min()) / 65536
        assert low - bin_width * 1.01 - 1e-6 <= found.item() <= high + bin_width * 1.01 + 1e-6


@pytest.mark.parametrize("percentile", [50, 101])
def test_percentile_out_of_range(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile must be"):
        bounds_of("percentile", [torch.rand(3)], percentile=percentile)


@pytest.mark.parametrize("name", PER_ORDER)
@given(seed=st.integers(0, 2**31), parts=st.integers(2, 5))
@settings(max_examples=15)
def test_batches_and_order_do_not_matter(name: str, seed: int, parts: int) -> None:
    x = normal(seed, 600)
    whole = bounds_of(name, [x])
    assert bounds_of(name, list(x.chunk(parts))) == whole
    shuffled = x[torch.randperm(600, generator=torch.Generator().manual_seed(seed))]
    for mine, theirs in zip(bounds_of(name, [shuffled]), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [*PER_ORDER, "ema_minmax"])
def test_per_channel_is_per_tensor_on_each_channel(name: str) -> None:
    x = normal(1, 5, 7, 9) * torch.tensor([1.0, 10, 0.1, 3, 1]).view(5, 1, 1)
    lower, upper = bounds_of(name, [x], axis=0)
    for channel in range(5):
        low, high = bounds_of(name, [x[channel]])
        assert (low.item(), high.item()) == (lower[channel].item(), upper[channel].item())


@pytest.mark.parametrize("name", [*PER_ORDER, "ema_minmax"])
def test_sixteen_bit_tensors_are_observed_in_float32(name: str) -> None:
    x = normal(2, 300).bfloat16()
    assert bounds_of(name, [x]) == bounds_of(name, [x.float()])


def candidates(**arguments: Any) -> Bounds:
    observer = OBSERVERS.build("dobi", Target(2, GRID, None), candidates=4, **arguments)
    run_passes(observer, [torch.tensor([0.0, 8.0])])
    lower, upper = observer.grid_of_candidates()
    return lower[0], upper[0]


def test_dobi_candidates() -> None:
    lower, upper = candidates(search="two_sided")
    assert (lower.tolist(), upper.tolist()) == ([0, 1, 2, 3], [8, 7, 6, 5])
    lower, upper = candidates(search="one_sided", step="full_range")
    assert (lower.tolist(), upper.tolist()) == ([0] * 4, [8, 6, 4, 2])
    lower, upper = candidates(search="one_sided", step="half_range")
    assert (lower.tolist(), upper.tolist()) == ([0] * 4, [8, 7, 6, 5])
    lower, upper = candidates(search="free")
    pairs = list(zip(lower.tolist(), upper.tolist(), strict=True))
    assert pairs == [(low, high) for low in range(4) for high in (8, 7, 6, 5)]


def squared_error(x: torch.Tensor, bounds: Bounds, bits: int = 3) -> float:
    return float((x - GRID.fake_quantize(x, *bounds, bits)).double().square().sum())


@pytest.mark.parametrize("seed", range(5))
def test_free_search_is_the_best_of_all(seed: int) -> None:
    x = torch.nn.functional.gelu(normal(seed, 2000))
    free = bounds_of("dobi", [x], search="free", candidates=20)
    for search, step in (("two_sided", "full_range"), ("one_sided", "half_range")):
        other = bounds_of("dobi", [x], search=search, step=step, candidates=20)
        assert squared_error(x, free) <= squared_error(x, other) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_ties(bits: int) -> None:
    """For data that are symmetric about zero a free search has mirror-image pairs of equally good candidates."""
    half = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.25, 6.0, 8.0])
    x = torch.cat([half, -half])
    first, last = (bounds_of("dobi", [x], bits, search="free", candidates=8, ties=ties) for ties in ("first", "last"))
    assert squared_error(x, first, bits) == squared_error(x, last, bits)
    assert first[0] <= last[0]
    if first[0] != -first[1]:
        assert (first[0].item(), first[1].item()) == (-last[1].item(), -last[0].item())
        assert first[0] < last[0]


def test_some_bits_have_a_true_tie() -> None:
    half = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.25, 6.0, 8.0])
    x = torch.cat([half, -half])
    pairs = [[bounds_of("dobi", [x], bits, search="free", candidates=8, ties=ties) for ties in ("first", "last")]
             for bits in (1, 2, 4)]
    assert any(first != last for first, last in pairs)


@pytest.mark.parametrize("argument", [{"search": "both"}, {"step": "third"}, {"ties": "middle"}, {"candidates": 0}])
def test_dobi_refuses_unknown_choices(argument: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        bounds_of("dobi", [torch.rand(3)], **argument)
