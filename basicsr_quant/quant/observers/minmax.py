"""Bounds = extremes of everything seen."""

from __future__ import annotations

import torch

from basicsr_quant.quant.observers.base import RangeObserver


class MinMaxObserver(RangeObserver):
    """Minimum and maximum over all batches."""

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return minimum and maximum."""
        return self.minimum, self.maximum
