"""What an observer is."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch

from basicsr_quant.quant.grids.base import Grid, working_dtype
from basicsr_quant.quant.reduction import reduce_


@dataclass(frozen=True)
class Target:
    """The quantizer that an observer chooses bounds for.

    Attributes:
        bits: Width of a code.
        grid: Its ``fake_quantize(x, lower, upper, bits)`` is what errors are measured with.
        channel_axis: 0 for bounds per channel, None for one pair.
    """

    bits: int
    grid: Grid
    channel_axis: int | None


class Observer(abc.ABC):
    """Sees all calibration tensors in one or more passes and then knows the bounds.

    Args:
        target: The quantizer.
    """

    passes = 1

    def __init__(self, target: Target) -> None:
        self.target = target
        self.seen = 0

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor as (channels, elements), in float32 or float64; one row if the bounds are per tensor."""
        x = working_dtype(x)
        if self.target.channel_axis is None:
            return x.reshape(1, -1)
        return x.movedim(self.target.channel_axis, 0).flatten(1)

    def update(self, x: torch.Tensor, number: int) -> None:
        """See one tensor in pass ``number`` (from 0)."""
        self.seen += x.numel()
        self.observe(self.rows(x), number)

    @abc.abstractmethod
    def observe(self, rows: torch.Tensor, number: int) -> None:
        """See (channels, elements) in pass ``number``."""

    def finish(self, number: int) -> None:  # noqa: B027 (most observers have nothing to reduce)
        """End a pass; statistics are reduced over the processes here."""

    @abc.abstractmethod
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lower and upper bounds, (channels,) each."""


class RangeObserver(Observer):
    """An observer whose first pass finds minimum and maximum."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.minimum = torch.empty(0)
        self.maximum = torch.empty(0)

    def observe(self, rows: torch.Tensor, number: int) -> None:
        """See one tensor; the first pass is ours, later ones go to :meth:`examine`."""
        if number:
            self.examine(rows, number)
            return
        low, high = (part.reshape(-1) for part in torch.aminmax(rows)) if len(rows) == 1 else torch.aminmax(rows, dim=1)
        self.minimum = torch.minimum(self.minimum, low) if self.minimum.numel() else low
        self.maximum = torch.maximum(self.maximum, high) if self.maximum.numel() else high

    def examine(self, rows: torch.Tensor, number: int) -> None:
        """See (channels, elements) in a pass after the first, with ``minimum`` and ``maximum`` known."""

    def finish(self, number: int) -> None:
        """End a pass."""
        if number == 0:
            reduce_(self.minimum, "min")
            reduce_(self.maximum, "max")
