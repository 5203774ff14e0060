"""Bounds = percentiles of everything seen."""

from __future__ import annotations

import torch

from basicsr_quant.quant.observers.base import RangeObserver, Target
from basicsr_quant.quant.observers.histogram import Histogram


class PercentileObserver(RangeObserver):
    """The (100 - p)-th and p-th percentiles, from a histogram of 65,536 bins between the extremes.

    Source: Li et al., "Fully quantized network for object detection" (CVPR 2019).

    Args:
        target: The quantizer.
        percentile: p in percent, above 50.
    """

    passes = 2
    bins = 65536

    def __init__(self, target: Target, percentile: float = 99.9) -> None:
        super().__init__(target)
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile must be above 50 and at most 100, found {percentile}")
        self.fraction = percentile / 100
        self._histogram: Histogram | None = None

    def examine(self, rows: torch.Tensor, number: int) -> None:
        """Count."""
        if self._histogram is None:
            self._histogram = Histogram(self.minimum, self.maximum, self.bins)
        self._histogram.add(rows)

    def finish(self, number: int) -> None:
        """Reduce what the pass found."""
        super().finish(number)
        if number == 1 and self._histogram is not None:
            self._histogram.reduce()

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two percentiles."""
        assert self._histogram is not None
        dtype = self.minimum.dtype
        return self._histogram.quantile(1 - self.fraction).to(dtype), self._histogram.quantile(self.fraction).to(dtype)
