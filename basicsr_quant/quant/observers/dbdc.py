"""Bounds = averages over batches of ranges whose sparse ends are cut off."""

from __future__ import annotations

import torch

from basicsr_quant.quant.observers.base import Observer, Target
from basicsr_quant.quant.observers.histogram import Histogram
from basicsr_quant.quant.reduction import reduce_


class DbdcObserver(Observer):
    """Density-based dual clipping.

    Of each batch's histogram the emptier of the two end bins is cut off, again and again, until at most 1 - ``clip`` of
    the elements are left; the bounds are the averages of what is left of the batches. Over several processes a batch is
    that of all of them.

    Source: Tu et al., "Toward accurate post-training quantization for image super resolution" (CVPR 2023), as 2DQuant
        specification 6.1 gives it.

    Args:
        target: The quantizer.
        clip: Share of the elements that is cut off, in [0, 1).
        bins: Of the histogram.
    """

    def __init__(self, target: Target, clip: float = 1e-4, bins: int = 2048) -> None:
        super().__init__(target)
        if not 0 <= clip < 1:
            raise ValueError(f"clip must be at least 0 and below 1, found {clip}")
        self.clip, self.bins = clip, bins
        self._batches = 0
        self._bounds = torch.empty(0)

    def observe(self, rows: torch.Tensor, number: int) -> None:
        """Average the clipped range of one batch."""
        minimum, maximum = reduce_(rows.amin(1), "min"), reduce_(rows.amax(1), "max")
        histogram = Histogram(minimum, maximum, self.bins)
        histogram.add(rows)
        histogram.reduce()
        kept = torch.tensor([self._kept(counts) for counts in histogram.counts.tolist()], dtype=torch.float64)
        bounds = (histogram.minimum[:, None] + histogram.width[:, None] * kept.to(rows.device)).to(rows.dtype)
        self._batches += 1
        self._bounds = bounds if self._batches == 1 else torch.lerp(self._bounds, bounds, 1 / self._batches)

    def _kept(self, counts: list[float]) -> tuple[int, int]:
        """Return the borders, counted in bins, of what is left of a histogram."""
        first, last = 0, len(counts)
        left = sum(counts)
        allowed = (1 - self.clip) * left
        while left > allowed and last - first > 1:
            if counts[first] < counts[last - 1]:
                left -= counts[first]
                first += 1
            else:
                last -= 1
                left -= counts[last]
        return first, last

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the averages."""
        return self._bounds[:, 0], self._bounds[:, 1]
