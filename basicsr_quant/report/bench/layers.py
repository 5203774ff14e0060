"""What benchmarks of single layers share: rotating inputs, errors against float64, one table per shape."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch

from basicsr_quant.deploy import native
from basicsr_quant.errors import UserError
from basicsr_quant.report.bench.driver import Report, interleave, timing, unsteady_note

INPUTS = 4
CPU = torch.device("cpu")
Layer = Callable[[torch.Tensor], torch.Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark of layers can be asked."""
    parser.add_argument("--rounds", type=int, default=9, help=f"rounds of {INPUTS} different inputs each")
    parser.add_argument("--seed", type=int, default=0)


def check_arguments(arguments: argparse.Namespace, what: str) -> None:
    """Raise UserError if the rounds are not positive."""
    if arguments.rounds < 1:
        raise UserError(f"bench {what}: --rounds must be positive, found {arguments.rounds}")


def begin(title: str, arguments: argparse.Namespace) -> Report:
    """Return an empty report that says which native kernels there are."""
    report = Report(title, settings={"rounds": arguments.rounds, "seed": arguments.seed})
    report.environment["native kernels"] = native.best_kernels().level if native.available() else "none"
    return report


def compare(report: Report, heading: str, variants: Mapping[str, Layer], wanted: Mapping[str, Layer],
            inputs: Sequence[torch.Tensor], rounds: int) -> None:
    """Add a table of variants to a report; the first is what ratios refer to.

    Args:
        report: Gets the table.
        heading: Of the table.
        variants: Name -> layer.
        wanted: Name -> what the variant computes, in float64.
        inputs: float32; a round runs over all of them.
        rounds: Number of rounds.
    """
    errors = {name: _error(layer, wanted[name], inputs[0]) for name, layer in variants.items()}
    works = {name: lambda layer=layer: [layer(x) for x in inputs]  # type: ignore[misc]
             for name, layer in variants.items()}
    seconds = {name: [second / len(inputs) for second in found]
               for name, found in interleave(works, rounds, CPU, heading).items()}
    reference = seconds[next(iter(variants))]
    rows = [{"variant": name, **timing(seconds[name], reference), "error": errors[name]} for name in variants]
    report.tables[heading] = rows
    report.notes += [f"{heading}: {note}" for note in unsteady_note(rows)]


def _error(layer: Layer, wanted: Layer, x: torch.Tensor) -> float:
    exact = wanted(x)
    return float((layer(x).double() - exact).abs().max() / exact.abs().max())


def onednn_has(name: str) -> bool:
    """Return whether torch has an int8 operator of oneDNN and the processor runs it well."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, name)
