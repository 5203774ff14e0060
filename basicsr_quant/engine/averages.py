"""Running means of the loss terms between two log lines."""

from __future__ import annotations

from typing import Any

import torch

from basicsr_quant.engine.distributed import Process


class Averages:
    """Sums of loss terms; they stay on the device until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, terms: list[dict[str, torch.Tensor]]) -> None:
        """Add the micro-batches of one iteration."""
        for micro in terms:
            for name, value in micro.items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()
        self._count += len(terms)

    def take(self, process: Process) -> dict[str, float]:
        """Return the means since the last call, over all processes, and start over."""
        parts = process.gather(({name: float(value) for name, value in self._sums.items()}, self._count))
        count = max(sum(number for _, number in parts), 1)
        means = {name: sum(sums.get(name, 0.0) for sums, _ in parts) / count for name in parts[0][0]}
        self._sums, self._count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Return sums and count for a checkpoint."""
        return {"sums": {name: value.cpu() for name, value in self._sums.items()}, "count": self._count}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._count = state["count"]
