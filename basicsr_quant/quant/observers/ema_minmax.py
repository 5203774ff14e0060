"""Bounds = running averages of the batches' extremes."""

from __future__ import annotations

import torch

from basicsr_quant.quant.observers.base import Observer, Target
from basicsr_quant.quant.reduction import reduce_


class EmaMinMaxObserver(Observer):
    """lower <- momentum * lower + (1 - momentum) * min of the batch, upper likewise; the first batch sets both.

    Over several processes each batch's extremes are those of all processes.

    Args:
        target: The quantizer.
        momentum: In [0, 1]; 1 keeps the bounds of the first batch.
    """

    def __init__(self, target: Target, momentum: float = 0.95) -> None:
        super().__init__(target)
        self.momentum = momentum
        self._bounds: tuple[torch.Tensor, torch.Tensor] | None = None

    def observe(self, rows: torch.Tensor, number: int) -> None:
        """Average the extremes of one batch."""
        low, high = torch.aminmax(rows, dim=1)
        low, high = reduce_(low, "min"), reduce_(high, "max")
        if self._bounds is not None:
            low = torch.lerp(low, self._bounds[0], self.momentum)
            high = torch.lerp(high, self._bounds[1], self.momentum)
        self._bounds = (low, high)

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the averages."""
        assert self._bounds is not None
        return self._bounds
