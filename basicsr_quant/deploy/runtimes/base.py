"""What a backend is, and which one is taken."""

from __future__ import annotations

import logging
from typing import Protocol

from torch import nn

from basicsr_quant.registry import RUNTIMES

logger = logging.getLogger("basicsr_quant")

AUTO = "auto"
BY_SPEED = ("native", "simulate")


class Runtime(Protocol):
    """Executes frozen networks; made without arguments."""

    def missing(self) -> str | None:
        """Return what this machine lacks, or None if the backend runs here."""
        ...

    def attach(self, network: nn.Module) -> nn.Module:
        """Replace layers of a frozen network, on its device, by the backend's own, in place; return the network."""
        ...


def runtime(name: str) -> Runtime:
    """Return a backend that runs on this machine.

    Args:
        name: Of the backend; ``auto`` for the fastest that is there.

    Returns:
        The backend; ``simulate``, with one log line, if the one asked for does not run here.

    Raises:
        UserError: The name is unknown.
    """
    if name == AUTO:
        return next(found for found in map(_made, filter(RUNTIMES.__contains__, BY_SPEED)) if found.missing() is None)
    chosen = _made(name)
    lacking = chosen.missing()
    if lacking is None:
        return chosen
    logger.warning("backend '%s' does not run here (%s); 'simulate' is used", name, lacking)
    return _made("simulate")


def _made(name: str) -> Runtime:
    made: Runtime = RUNTIMES.build(name)
    return made
