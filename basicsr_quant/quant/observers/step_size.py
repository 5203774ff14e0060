"""Bounds = LSQ's initial step, from the mean magnitude of everything seen."""

from __future__ import annotations

from typing import Literal

import torch

from basicsr_quant.quant.grids.symmetric_step import step_bounds
from basicsr_quant.quant.observers.base import Observer, Target
from basicsr_quant.quant.reduction import reduce_


class StepSizeObserver(Observer):
    """s = 2 * mean|x| / sqrt(Qp), as the bounds that stand for it on the grid ``symmetric_step``.

    Source: Esser et al., "Learned step size quantization" (ICLR 2020), section 2.1.

    Args:
        target: The quantizer.
        codes: ``signed``, for weights, or ``by_data``: unsigned where nothing negative was seen.

    Raises:
        ValueError: Another ``codes``.
    """

    def __init__(self, target: Target, codes: Literal["by_data", "signed"] = "by_data") -> None:
        super().__init__(target)
        if codes not in ("by_data", "signed"):
            raise ValueError(f"codes must be by_data or signed, found {codes!r}")
        self.codes = codes
        self._sums = torch.empty(0)
        self._minimum = torch.empty(0)
        self._count = torch.empty(0)

    def observe(self, rows: torch.Tensor, number: int) -> None:
        """Add up the magnitudes of one tensor."""
        if not self._sums.numel():
            self._sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
            self._minimum = torch.full((len(rows),), torch.inf, dtype=rows.dtype, device=rows.device)
            self._count = torch.zeros((), dtype=torch.float64, device=rows.device)
        self._sums += rows.abs().sum(1, dtype=torch.float64)
        self._minimum = torch.minimum(self._minimum, rows.amin(1))
        self._count += rows.shape[1]

    def finish(self, number: int) -> None:
        """Reduce what the pass found."""
        reduce_(self._sums, "sum")
        reduce_(self._minimum, "min")
        reduce_(self._count, "sum")

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return -Qn s and Qp s."""
        bits = self.target.bits
        signed = (self._minimum < 0) | (self.codes == "signed")
        positives = torch.where(signed, 2 ** (bits - 1) - 1, 2**bits - 1).clamp_min(1)
        step = 2 * (self._sums / self._count) / positives.sqrt()
        lower, upper = step_bounds(step.to(self._minimum.dtype), signed, bits)
        return lower, upper
