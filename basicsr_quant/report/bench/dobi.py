"""``bench dobi``: the bound search of 2DQuant, one tensor and a whole calibration, against 100 passes per tensor."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from basicsr_quant.errors import UserError
from basicsr_quant.io.progress import track
from basicsr_quant.quant import fast
from basicsr_quant.quant.calibrate import calibrate, named_quantizers, run_passes
from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid
from basicsr_quant.quant.observers import fast_histogram
from basicsr_quant.quant.observers.base import Target
from basicsr_quant.quant.observers.dobi import DobiObserver
from basicsr_quant.report.bench import brute_force
from basicsr_quant.report.bench.child import Usage, in_own_process
from basicsr_quant.report.bench.driver import Report, interleave, require, seconds_of, timing, unsteady_note
from basicsr_quant.report.bench.networks import Network

HELP = "bound search (DOBI): histogram against 100 passes per tensor"
FULL_BATCH = 32
TOLERANCE = 1e-6
BRUTE_FORCE, PLAIN, NUMBA, FORWARD = "100 passes, float32", "ours, plain torch", "ours, numba", "one forward"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be asked."""
    Network.add_arguments(parser, batch=4)
    parser.add_argument("--full", action="store_true", help=f"the published size: --batch {FULL_BATCH}")
    parser.add_argument("--parts", nargs="+", choices=("search", "calibration"), default=["search", "calibration"])
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the search on one tensor")
    parser.add_argument("--calibration-rounds", type=int, default=1,
                        help="rounds of the calibration (100 passes per tensor take minutes)")


def run(arguments: argparse.Namespace) -> Report:
    """Measure the parts that are asked for.

    Raises:
        UserError: Rounds are not positive, or a variant finds other bounds than it should.
    """
    if min(arguments.rounds, arguments.calibration_rounds) < 1:
        raise UserError("bench dobi: --rounds and --calibration-rounds must be positive")
    network = Network.from_arguments(arguments)
    if arguments.full:
        network = dataclasses.replace(network, batch=FULL_BATCH)
    report = Report(f"bench dobi: {network}", settings={**network.as_arguments(), "rounds": arguments.rounds})
    if "search" in arguments.parts:
        _search(network, arguments.rounds, report)
    if "calibration" in arguments.parts:
        _calibration(network, arguments.calibration_rounds, report)
    return report


@contextmanager
def _numba(on: bool) -> Iterator[None]:
    """Context in which the fast path is on or off."""
    before = os.environ.get(fast.SWITCH)
    os.environ[fast.SWITCH] = "1" if on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[fast.SWITCH]
        else:
            os.environ[fast.SWITCH] = before


def _numba_can(network: Network) -> bool:
    """Return whether a run with numba would be anything else than one without."""
    with _numba(True):
        return fast_histogram.usable(torch.empty(1, fast_histogram.SMALLEST, device=network.device))


def tensor(network: Network) -> torch.Tensor:
    """Return something like the input of an MLP: bell-shaped channels of unequal width, (B * h * w, channels)."""
    generator = torch.Generator().manual_seed(network.seed)
    widths = torch.randn(network.channels, generator=generator).mul(0.4).exp()
    tokens = network.batch * network.patch_size**2
    return (torch.randn(tokens, network.channels, generator=generator) * widths).to(network.device)


@torch.no_grad()
def _search(network: Network, rounds: int, report: Report) -> None:
    """Time the search on one tensor and compare all candidates with float64."""
    x, device = tensor(network), torch.device(network.device)
    found: dict[str, brute_force.Found] = {}

    def passes() -> None:
        found[BRUTE_FORCE] = brute_force.search(x, network.bits)

    def histogram(name: str, numba: bool) -> Callable[[], None]:
        def work() -> None:
            with _numba(numba):
                found[name] = _our_search(x, network.bits)

        return work

    variants = {BRUTE_FORCE: passes, PLAIN: histogram(PLAIN, False)}
    if _numba_can(network):
        variants[NUMBA] = histogram(NUMBA, True)
    seconds = interleave(variants, rounds, device, "bound search")
    exact: list[torch.Tensor] = []
    reference = seconds_of(lambda: exact.append(brute_force.exact_errors(x, network.bits)), device)
    errors = exact[0]
    best = int(errors.argmin())
    rows = [{"variant": name, **timing(seconds[name], seconds[BRUTE_FORCE]), "candidate": found[name].index,
             "regret": float(errors[found[name].index] / errors[best] - 1),
             "score error": found[name].squared_error / float(errors[found[name].index]) - 1} for name in variants]
    rows.append({"variant": "100 passes, float64", **timing([reference], [seconds[BRUTE_FORCE][-1]]), "candidate": best,
                 "regret": 0.0, "score error": 0.0})
    report.tables[f"Search on one tensor of {tuple(x.shape)}"] = rows
    report.notes += unsteady_note(rows)
    for row in rows[1:]:
        require(row["regret"] <= TOLERANCE, f"{row['variant']} chose candidate {row['candidate']}, float64 {best}, "
                f"whose error is {row['regret']:.1e} lower")
    report.notes.append(f"Checked: ours takes the candidate of the float64 passes, or one whose error is equal to "
                        f"{TOLERANCE}. regret: exact error of the candidate over the least, minus 1; score error: the "
                        "squared error that the search saw, over the exact one, minus 1.")


def _our_search(x: torch.Tensor, bits: int) -> brute_force.Found:
    observer = DobiObserver(Target(bits, FloatOffsetGrid(), None), candidates=brute_force.CANDIDATES)
    run_passes(observer, [x])
    lower, upper = observer.bounds()
    index = int((observer.grid_of_candidates()[1][0] - upper).abs().argmin())
    return brute_force.Found(index, float(lower), float(upper), float(observer.squared_error()))


def _calibration(network: Network, rounds: int, report: Report) -> None:
    """Time whole calibrations, each in a process of its own."""
    names = [FORWARD, BRUTE_FORCE, PLAIN, *([NUMBA] if _numba_can(network) else [])]
    usages: dict[str, list[Usage]] = {name: [] for name in names}
    for position in track(range(rounds * len(names)), "whole calibrations"):
        name = names[position % len(names)]
        with _numba(name == NUMBA):
            usages[name].append(in_own_process(f"{__name__}:calibration_work",
                                               {"name": name, **network.as_arguments()}, dict(os.environ)))
    seconds = {name: [usage.seconds for usage in usages[name]] for name in names}
    forward = max(usages[FORWARD], key=lambda usage: usage.peak_mb)
    bounds = {name: torch.tensor(usages[name][0].result) for name in names[1:]}
    rows = []
    for name in names:
        peak = max(usages[name], key=lambda usage: usage.peak_mb)
        rows.append({"variant": name, **timing(seconds[name], seconds[BRUTE_FORCE]), "peak MB": peak.peak_mb,
                     "peak/forward": peak.peak_mb / forward.peak_mb, "added MB": peak.added_mb,
                     "added/forward": peak.added_mb / forward.added_mb if forward.added_mb else None,
                     "other bounds": _different(bounds[name], bounds[BRUTE_FORCE]) if name in bounds else None})
    report.tables[f"Whole calibration, {len(bounds[PLAIN]) // 2} quantizers"] = rows
    report.notes += unsteady_note(rows)
    if NUMBA in bounds:
        require(torch.equal(bounds[NUMBA], bounds[PLAIN]), "calibration with numba gives other bounds than without")
        report.notes.append("Checked: the same bounds with numba and without.")
    report.notes.append(
        "Each calibration is a process of its own, measured once after a small one. peak: highest memory of the whole "
        "process (on a GPU: of its tensors); added: above the level before, with networks and libraries loaded. other "
        "bounds: quantizers for which the float32 passes choose another candidate, as near ties go either way in "
        "float32.")


def _different(bounds: torch.Tensor, others: torch.Tensor) -> int:
    """Return how many of the pairs (lower, upper) differ by more than rounding."""
    pairs, other_pairs = bounds.view(-1, 2), others.view(-1, 2)
    width = (other_pairs[:, 1] - other_pairs[:, 0]).abs()
    return int(((pairs - other_pairs).abs().amax(1) > 1e-5 * width).sum())


def calibration_work(name: str, **sizes: Any) -> Callable[[], list[float]]:
    """Prepare a calibration in this process, warm up on a small one, and return it as a callable.

    Args:
        name: Which variant.
        sizes: Attributes of :class:`Network`.
    """
    network = Network(**sizes)
    model, images = network.quantized(), network.images()
    works: Mapping[str, Callable[[torch.Tensor], object]] = {
        FORWARD: network.full_precision(),
        BRUTE_FORCE: lambda batch: brute_force.calibrate(model, batch),
    }
    work = works.get(name, lambda batch: calibrate(model, [batch]))

    @torch.no_grad()
    def measured(batch: torch.Tensor) -> list[float]:
        work(batch)
        if name == FORWARD:
            return []
        return [float(bound) for _, quantizer in named_quantizers(model)
                for bound in (quantizer.lower_bound, quantizer.upper_bound)]

    if name in (PLAIN, NUMBA):
        _our_search(torch.randn(fast_histogram.SMALLEST, device=network.device), network.bits)
    with torch.no_grad():
        network.full_precision()(images[:1, :, :8, :8])
    return lambda: measured(images)
