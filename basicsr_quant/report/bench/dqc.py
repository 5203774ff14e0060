"""``bench dqc``: one iteration of 2DQuant's distillation, ours against the released one."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.io.progress import track
from basicsr_quant.losses.pixel import L1Loss
from basicsr_quant.models.step import DistillationStep
from basicsr_quant.quant.bounds import bound_parameters
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.report.bench.child import in_own_process
from basicsr_quant.report.bench.driver import Report, interleave, require, timing, unsteady_note
from basicsr_quant.report.bench.networks import Network
from basicsr_quant.report.bench.released_step import BETAS, FEATURE_WEIGHT, LEARNING_RATE, ReleasedStep

HELP = "an iteration of the distillation of bounds (DQC): ours against the released one"
RELEASED, QUIET, OURS, COMPILED = "released", "released, no anomaly detection", "ours", "ours, torch.compile"
TOLERANCE = 5e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be asked."""
    Network.add_arguments(parser, batch=2)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of one iteration each")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile (minutes of compilation)")


class OurStep:
    """The same student, teacher, losses and optimizer as :class:`ReleasedStep`, as this framework runs them.

    Args:
        student: Calibrated network; it is copied.
        teacher: Full-precision network.
        taps: Names of the modules whose outputs are matched.
        compiled: Whether to use ``torch.compile``.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, taps: list[str], compiled: bool) -> None:
        student = copy.deepcopy(student)
        self.bounds = bound_parameters(student)
        self.optimizer = torch.optim.Adam(self.bounds, lr=LEARNING_RATE, betas=BETAS)
        self.step = DistillationStep(student, teacher.requires_grad_(False), taps, L1Loss(), "twice", FEATURE_WEIGHT,
                                     "batch_broadcast", compiled)

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``pixel`` and ``feature`` for (B, 3, h, w)."""
        losses: dict[str, torch.Tensor] = self.step({"lq": images})
        return losses

    def iterate(self, images: torch.Tensor) -> None:
        """Do one iteration."""
        self.optimizer.zero_grad()
        torch.stack(list(self.losses(images).values())).sum().backward()
        self.optimizer.step()


def make_step(name: str, network: Network, student: nn.Module) -> OurStep | ReleasedStep:
    """Return a variant by its name."""
    teacher = network.full_precision()
    taps = [f"layers.{group}.residual_group" for group in range(len(network.depths))]
    if name in (RELEASED, QUIET):
        return ReleasedStep(student, teacher, taps, anomaly_detection=name == RELEASED)
    return OurStep(student, teacher, taps, compiled=name == COMPILED)


def _student(network: Network, images: torch.Tensor) -> nn.Module:
    student = network.quantized()
    calibrate(student, [images])
    return student


def run(arguments: argparse.Namespace) -> Report:
    """Compare losses and gradients of the first iteration, then time iterations and measure memory.

    Raises:
        UserError: Rounds are not positive, or the losses differ.
    """
    if arguments.rounds < 1:
        raise UserError("bench dqc: --rounds must be positive")
    network = Network.from_arguments(arguments)
    images, device = network.images(), torch.device(network.device)
    names = [RELEASED, QUIET, OURS, *([COMPILED] if arguments.compile else [])]
    report = Report(f"bench dqc: {network}", settings={**network.as_arguments(), "rounds": arguments.rounds})
    student = _student(network, images)
    steps = {name: make_step(name, network, student) for name in names}
    compared = {name: _compare(name, steps[name], steps[RELEASED], images) for name in names}
    variants: dict[str, Callable[[], object]] = {
        name: lambda step=step: step.iterate(images) for name, step in steps.items()}  # type: ignore[misc]
    seconds = interleave(variants, arguments.rounds, device, "distillation iterations")
    del steps, variants, student
    memory = {name: in_own_process(f"{__name__}:iteration_work", {"name": name, **network.as_arguments()},
                                   dict(os.environ)) for name in track(names, "peak memory")}
    rows = []
    for name in names:
        times = timing(seconds[name], seconds[RELEASED])
        quiet = timing(seconds[name], seconds[QUIET])["speed-up"]
        rows.append({"variant": name, **times, "without anomaly detection": quiet, "peak MB": memory[name].peak_mb,
                     "added MB": memory[name].added_mb, **compared[name]})
    report.tables["One iteration"] = rows
    report.notes += unsteady_note(rows)
    report.notes += [
        f"Checked: pixel and feature loss of the first iteration agree to {TOLERANCE} relative; gradient error is the "
        "relative distance of all gradients of bounds taken as one vector.",
        "speed-up: over the released iteration; 'without anomaly detection': over the released one without it. The "
        "released variants run on our network, which is itself faster than the released one.",
        "peak: highest memory of a process that does its first two iterations (on a GPU: of its tensors); added: above "
        "the level before, with networks and libraries loaded, and for torch.compile the compiled code.",
    ]
    return report


def _compare(name: str, step: OurStep | ReleasedStep, reference: OurStep | ReleasedStep, images: torch.Tensor
             ) -> dict[str, float]:
    """Return losses and the relative error of the gradients before anything was learned."""
    found, wanted = step.losses(images), reference.losses(images)
    for loss in wanted:
        mine, theirs = found[loss].item(), wanted[loss].item()
        require(abs(mine - theirs) <= TOLERANCE * abs(theirs), f"{loss} loss of '{name}' is {mine:.6e}, released "
                f"{theirs:.6e}")
    gradients, others = (torch.cat(torch.autograd.grad(sum(losses.values()), of.bounds))  # type: ignore[arg-type]
                         for losses, of in ((found, step), (wanted, reference)))
    error = float((gradients - others).norm() / others.norm())
    return {"pixel loss": found["pixel"].item(), "feature loss": found["feature"].item(), "gradient error": error}


def iteration_work(name: str, **sizes: Any) -> Callable[[], list[float]]:
    """Prepare a variant in this process and return two iterations as a callable; compilation is done before.

    Args:
        name: Which variant.
        sizes: Attributes of :class:`Network`.
    """
    network = Network(**sizes)
    images = network.images()
    student = network.quantized("minmax")
    calibrate(student, [images[:1]])
    step = make_step(name, network, student)
    del student
    if name == COMPILED:
        step.iterate(images)

    def iterate() -> list[float]:
        step.iterate(images)
        step.iterate(images)
        return []

    return iterate
