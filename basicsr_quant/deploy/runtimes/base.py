"""What a backend is, and which one is taken."""

from __future__ import annotations

import itertools
import logging
from typing import Protocol

import torch
from torch import nn

from basicsr_quant.registry import RUNTIMES

logger = logging.getLogger("basicsr_quant")

AUTO, CPU = "auto", torch.device("cpu")
SLOWEST = "simulate"
BY_SPEED = ("native", "onednn", SLOWEST)
"""What ``auto`` tries on a CPU; elsewhere it is ``simulate``."""


class Runtime(Protocol):
    """Executes frozen networks; made without arguments."""

    def missing(self) -> str | None:
        """Return what this machine lacks, or None if the backend runs here."""
        ...

    def attach(self, network: nn.Module) -> nn.Module:
        """Replace layers of a frozen network, on its device, by the backend's own, in place; return the network."""
        ...


def runtime(name: str, device: torch.device = CPU) -> Runtime:
    """Return a backend that runs on this machine.

    Args:
        name: Of the backend; ``auto`` for the fastest that is there.
        device: Of the network.

    Returns:
        The backend; the next slower one, with one log line, if the one asked for does not run here.

    Raises:
        UserError: The name is unknown.
    """
    order: tuple[str, ...] = (name, SLOWEST)
    if name == AUTO:
        order = BY_SPEED if device.type == "cpu" else (SLOWEST,)
    for candidate, slower in itertools.pairwise(order):
        chosen = _made(candidate)
        lacking = chosen.missing()
        if lacking is None:
            return chosen
        logger.warning("backend '%s' does not run here (%s); '%s' comes next", candidate, lacking, slower)
    return _made(order[-1])


def _made(name: str) -> Runtime:
    made: Runtime = RUNTIMES.build(name)
    return made
