"""Counts and sums in equal bins: all that a bound search needs to know of a tensor."""

from __future__ import annotations

import torch

from basicsr_quant.quant.reduction import reduce_

CHUNK = 2**20


class Histogram:
    """A histogram with the sum of the values in each bin, per channel, in float64.

    Args:
        minimum: (channels,) lower end of the first bin.
        maximum: (channels,) upper end of the last.
        bins: Number of bins.
    """

    def __init__(self, minimum: torch.Tensor, maximum: torch.Tensor, bins: int) -> None:
        self.minimum = minimum.double()
        self.width = ((maximum.double() - self.minimum) / bins).clamp_min(torch.finfo(torch.float64).tiny)
        self.bins = bins
        shape = (minimum.numel(), bins)
        self.counts = torch.zeros(shape, dtype=torch.float64, device=minimum.device)
        self.sums = torch.zeros_like(self.counts)
        self.squares = torch.zeros(minimum.numel(), dtype=torch.float64, device=minimum.device)

    def add(self, rows: torch.Tensor) -> None:
        """Count (channels, elements), a chunk at a time so that memory stays small."""
        channels = rows.shape[0]
        columns = max(CHUNK // channels, 1)
        offset = torch.arange(channels, device=rows.device)[:, None] * self.bins
        scale = (1 / self.width).to(rows.dtype)[:, None]
        start = self.minimum.to(rows.dtype)[:, None]
        for chunk in torch.split(rows, columns, dim=1):
            index = ((chunk - start) * scale).long().clamp_(0, self.bins - 1).add_(offset).reshape(-1)
            values = chunk.reshape(-1).double()
            size = channels * self.bins
            self.counts += torch.bincount(index, minlength=size).reshape(channels, -1)
            self.sums += torch.bincount(index, weights=values, minlength=size).reshape(channels, -1)
            self.squares += chunk.double().square().sum(1)

    def reduce(self) -> None:
        """Add up the histograms of all processes."""
        for tensor in (self.counts, self.sums, self.squares):
            reduce_(tensor, "sum")

    def quantile(self, fraction: float) -> torch.Tensor:
        """Return the value below which ``fraction`` (0 to 1) of the elements lie, to within a bin; (channels,)."""
        cumulative = self.counts.cumsum(1)
        wanted = fraction * cumulative[:, -1:]
        index = torch.searchsorted(cumulative, wanted).clamp_max(self.bins - 1)
        before = torch.where(index > 0, cumulative.gather(1, (index - 1).clamp_min(0)), 0.0)
        inside = (wanted - before) / self.counts.gather(1, index).clamp_min(1)
        return self.minimum + self.width * (index + inside.clamp(0, 1)).squeeze(1)

    def squared_error(self, lower: torch.Tensor, upper: torch.Tensor, levels: int) -> torch.Tensor:
        """Return the squared error of rounding to ``levels + 1`` equidistant values between two bounds.

        With cells k, values v_k, counts n_k and sums S_k it is sum(x^2) + sum_k (n_k v_k^2 - 2 v_k S_k); a bin that a
        cell border cuts goes to one side whole, where both sides have nearly the same error.

        Args:
            lower: (channels, candidates).
            upper: As ``lower``.
            levels: 2^bits - 1.

        Returns:
            (channels, candidates) float64.
        """
        lower, upper = lower.double(), upper.double()
        step = (upper - lower) / levels
        borders = torch.arange(levels, device=lower.device) + 0.5
        edges = lower[..., None] + step[..., None] * borders
        index = ((edges - self.minimum[:, None, None]) / self.width[:, None, None]).round_().long().clamp_(0, self.bins)
        counts, sums = (self._cells(moments, index) for moments in (self.counts, self.sums))
        values = lower[..., None] + step[..., None] * torch.arange(levels + 1, device=lower.device)
        return self.squares[:, None] + (counts * values.square() - 2 * values * sums).sum(-1)

    @staticmethod
    def _cells(moments: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return (channels, candidates, cells) totals of per-bin moments between consecutive bin indices."""
        channels, candidates, borders = index.shape
        running = torch.nn.functional.pad(moments.cumsum(1), (1, 0))
        at = running.gather(1, index.reshape(channels, -1)).reshape(channels, candidates, borders)
        first = torch.zeros_like(at[..., :1])
        last = running[:, -1:, None].expand(channels, candidates, 1)
        return torch.cat([at, last], -1) - torch.cat([first, at], -1)
