"""DOBI: the candidate bounds that round the calibration tensors with the least squared error."""

from __future__ import annotations

from typing import Literal

import torch

from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid
from basicsr_quant.quant.observers import fast_histogram
from basicsr_quant.quant.observers.base import RangeObserver, Target
from basicsr_quant.quant.observers.histogram import Histogram, chunks
from basicsr_quant.quant.reduction import reduce_

BINS = 4096
FINALISTS = 3
TIE = 1e-6


class DobiObserver(RangeObserver):
    """Distribution-oriented bound initialisation, in three passes: extremes, histogram, exact score of the finalists.

    Candidates move inwards from minimum and maximum in equal steps. The histogram ranks all of them; of the
    best few those that can still win are scored exactly, with the quantizer's own arithmetic in its own precision and
    the error summed in float64.

    Source: 2DQuant section 3.2 and specification 3.1, 3.2.

    Args:
        target: The quantizer; its grid should be ``float_offset``, which the histogram assumes for the ranking.
        search: ``two_sided`` moves both bounds together, ``one_sided`` the upper one alone, ``free`` each by itself.
        step: Step of the search as a part of the range R. ``full_range``: the outermost candidate is the range itself,
            the innermost has 1/candidates of it. ``half_range``: a one-sided search stops at half of it (the paper's
            step R/2K). Two-sided searches take R/2K on each side either way.
        ties: Which of equally good candidates wins, the ``first`` (outermost) or the ``last``.
        candidates: K.
    """

    passes = 3

    def __init__(self, target: Target, search: Literal["two_sided", "one_sided", "free"] = "two_sided",
                 step: Literal["full_range", "half_range"] = "full_range", ties: Literal["first", "last"] = "first",
                 candidates: int = 100) -> None:
        super().__init__(target)
        for name, value, choices in (("search", search, ("two_sided", "one_sided", "free")),
                                     ("step", step, ("full_range", "half_range")), ("ties", ties, ("first", "last"))):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}")
        if candidates < 1:
            raise ValueError(f"candidates must be positive, found {candidates}")
        self.search, self.step, self.ties, self.candidates = search, step, ties, candidates
        self._histogram: Histogram | None = None
        self._finalists: tuple[torch.Tensor, torch.Tensor] | None = None
        self._errors = torch.empty(0)

    def grid_of_candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lower and upper bounds of all candidates, outermost first, (channels, candidates) each."""
        low, high = self.minimum[:, None], self.maximum[:, None]
        index = torch.arange(self.candidates, dtype=low.dtype, device=low.device)
        parts = 2 * self.candidates if self.search != "one_sided" or self.step == "half_range" else self.candidates
        inwards = index * ((high - low) / parts)
        if self.search == "two_sided":
            return low + inwards, high - inwards
        if self.search == "one_sided":
            return low.expand_as(inwards), high - inwards
        lower = (low + inwards)[:, :, None].expand(-1, -1, self.candidates).flatten(1)
        upper = (high - inwards)[:, None, :].expand(-1, self.candidates, -1).flatten(1)
        return lower, upper

    def examine(self, rows: torch.Tensor, number: int) -> None:
        """Fill the histogram (pass 1) or score the finalists (pass 2)."""
        if number == 1:
            if self._histogram is None:
                self._histogram = Histogram(self.minimum, self.maximum, BINS)
            self._histogram.add(rows)
            return
        assert self._finalists is not None
        self._errors += self._exact_errors(rows, *self._finalists)

    def _exact_errors(self, rows: torch.Tensor, lowers: torch.Tensor, uppers: torch.Tensor) -> torch.Tensor:
        """Return the squared errors of (channels, elements) for (channels, candidates) bounds, float64."""
        if isinstance(self.target.grid, FloatOffsetGrid) and fast_histogram.usable(rows):
            return fast_histogram.squared_errors(rows, lowers, uppers, 2**self.target.bits - 1)
        errors = torch.zeros_like(lowers, dtype=torch.float64)
        for chunk in chunks(rows):
            for candidate in range(lowers.shape[1]):
                lower, upper = lowers[:, candidate, None], uppers[:, candidate, None]
                rounded = self.target.grid.fake_quantize(chunk, lower, upper, self.target.bits)
                errors[:, candidate] += rounded.sub_(chunk).double().square_().sum(1)
        return errors

    def finish(self, number: int) -> None:
        """Reduce what the pass found; after the histogram, choose the finalists."""
        super().finish(number)
        if number == 1 and self._histogram is not None:
            self._histogram.reduce()
            lower, upper = self.grid_of_candidates()
            self._finalists = self._choose_finalists(lower, upper)
            self._errors = torch.zeros_like(self._finalists[0], dtype=torch.float64)
        if number == 2:
            reduce_(self._errors, "sum")

    def _choose_finalists(self, lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bounds of the best few candidates, outermost first, without those that cannot win."""
        assert self._histogram is not None
        errors = self._ranked_errors(lower, upper)
        chosen = errors.topk(min(FINALISTS, errors.shape[1]), dim=1, largest=False).indices.sort(dim=1).values
        lower, upper, errors = (tensor.gather(1, chosen) for tensor in (lower, upper, errors))
        best = errors.amin(1, keepdim=True)
        least = errors - self._histogram.overestimate(lower, upper, 2**self.target.bits - 1)
        possible = ~(least > best + TIE * best.abs()).all(0)
        return lower[:, possible], upper[:, possible]

    def _ranked_errors(self, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Return the histogram's estimate for all candidates, in groups so that memory stays small."""
        assert self._histogram is not None
        levels = 2**self.target.bits - 1
        size = max(2**22 // (lower.shape[0] * (levels + 1)), 1)
        groups = zip(torch.split(lower, size, dim=1), torch.split(upper, size, dim=1), strict=True)
        return torch.cat([self._histogram.squared_error(low, high, levels) for low, high in groups], dim=1)

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best finalist."""
        assert self._finalists is not None
        lowers, uppers = self._finalists
        best = self._best()
        return lowers.gather(1, best).squeeze(1), uppers.gather(1, best).squeeze(1)

    def squared_error(self) -> torch.Tensor:
        """Return the summed squared error of the calibration tensors between :meth:`bounds`, (channels,) float64."""
        return self._errors.gather(1, self._best()).squeeze(1)

    def _best(self) -> torch.Tensor:
        """Return the index of the best finalist, (channels, 1)."""
        errors = self._errors
        if self.ties == "last":
            return errors.shape[1] - 1 - errors.flip(1).argmin(1, keepdim=True)
        return errors.argmin(1, keepdim=True)
