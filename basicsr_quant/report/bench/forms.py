"""What benchmarks of whole networks share: the forms of a network, and their table."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from basicsr_quant.deploy import native
from basicsr_quant.deploy.runtimes.native_bf16 import multiplies_bf16
from basicsr_quant.errors import UserError
from basicsr_quant.registry import RUNTIMES
from basicsr_quant.report.bench.driver import Report, interleave, timing, unsteady_note
from basicsr_quant.report.bench.exported import exported_forms

RELEASED, SIMULATED = "simulated, as released", "simulated"
FP32, COMPILED, BF16 = "fp32, eager", "fp32, torch.compile", "bf16, eager"
BACKEND = "backend {}"
NOT_TIMED = ("reference", "simulate")
CPU = torch.device("cpu")
Work = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Form:
    """One way to run a network.

    Attributes:
        work: A call with the inputs of the benchmark; the output.
        like: Name of the form whose output it should have.
    """

    work: Work
    like: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark of a network can be asked."""
    parser.add_argument("--rounds", type=int, default=9, help="rounds of one call of each form")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile (minutes of compilation)")


def check_arguments(arguments: argparse.Namespace, what: str) -> None:
    """Raise UserError if the rounds are not positive."""
    if arguments.rounds < 1:
        raise UserError(f"bench {what}: --rounds must be positive, found {arguments.rounds}")


def begin(title: str, settings: Mapping[str, Any]) -> Report:
    """Return an empty report that says which native kernels there are."""
    report = Report(title, settings=dict(settings))
    report.environment["native kernels"] = native.best_kernels().level if native.available() else "none"
    return report


def float_forms(network: nn.Module, inputs: Sequence[torch.Tensor], name: str, compiled: bool) -> dict[str, Form]:
    """Return the forms of a network without codes, but for the eager one.

    Args:
        network: On the CPU, in float32.
        inputs: Of the network; whole numbers stay as they are.
        name: Of the eager form.
        compiled: Whether to use ``torch.compile``.
    """
    forms = {form: Form(work, name) for form, work in exported_forms(network, inputs).items()}
    if compiled:
        fast = torch.compile(network)
        forms[COMPILED] = Form(lambda: fast(*inputs), name)
    if multiplies_bf16():
        half = copy.deepcopy(network).bfloat16()
        rounded = [x.bfloat16() if x.is_floating_point() else x for x in inputs]
        forms[BF16] = Form(lambda: half(*rounded).float(), name)
    return forms


def backend_forms(frozen: nn.Module, inputs: Sequence[torch.Tensor], like: str) -> dict[str, Form]:
    """Return a form for each backend that runs here, but for those that nobody uses for their speed.

    Args:
        frozen: The network that they execute; it is copied.
        inputs: Of the network.
        like: Name of the form that simulates.
    """
    forms = {}
    for name in RUNTIMES:
        backend = RUNTIMES.build(name)
        if name not in NOT_TIMED and backend.missing() is None:
            network = backend.attach(copy.deepcopy(frozen))
            forms[BACKEND.format(name)] = Form(lambda network=network: network(*inputs), like)  # type: ignore[misc]
    return forms


def compare(report: Report, heading: str, forms: Mapping[str, Form], over: Sequence[str], rounds: int) -> None:
    """Add the table of all forms to a report.

    Args:
        report: Gets the table.
        heading: Of the table.
        forms: Name -> form.
        over: Names of the forms to which ratios of times are given; the first is that of ``speed-up``.
        rounds: Number of rounds.
    """
    outputs = {name: form.work().double() for name, form in forms.items()}
    seconds = interleave({name: form.work for name, form in forms.items()}, rounds, CPU, heading)
    rows: list[dict[str, Any]] = []
    for name, form in forms.items():
        wanted = outputs[form.like]
        ratios = {f"over '{other}'": timing(seconds[name], seconds[other])["speed-up"] for other in over[1:]}
        error = float((outputs[name] - wanted).norm() / wanted.norm())
        rows.append({"variant": name, **timing(seconds[name], seconds[over[0]]), **ratios, "error": error})
    report.tables[heading] = rows
    report.notes += unsteady_note(rows)
    likes = {form.like for form in forms.values()}
    report.notes.append(
        f"speed-up: over '{over[0]}', the median of the ratios of single rounds. error: distance of the output from "
        f"that of {' or '.join(repr(like) for like in sorted(likes))}, whichever a form stands for, over its length. "
        "Two exact ways to sum in float32 differ too: where a value lies on the edge of two codes, rounding decides, "
        "and what follows changes with it.")
