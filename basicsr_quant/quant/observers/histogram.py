"""Counts and sums in equal bins: all that a bound search needs to know of a tensor."""

from __future__ import annotations

import torch

from basicsr_quant.quant.observers import fast_histogram
from basicsr_quant.quant.reduction import reduce_

CPU_CHUNK = 2**16
DEVICE_CHUNK = 2**24


def chunks(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cut (channels, elements) into parts whose intermediate results stay in a core's cache, or fit on a device."""
    size = CPU_CHUNK * torch.get_num_threads() if rows.device.type == "cpu" else DEVICE_CHUNK
    return torch.split(rows, max(size // rows.shape[0], 1), dim=1)


def deterministic(x: torch.Tensor) -> bool:
    """Return whether operations on a tensor that have no deterministic CUDA version must be avoided."""
    return x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def sums_by_index(index: torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    """Return the sum of the values that go to each of ``size`` places.

    Args:
        index: (elements,) int64, 0 to ``size`` - 1.
        values: (elements,) float64.
        size: Number of places.
    """
    if deterministic(values):
        return values.new_zeros(size).index_add_(0, index, values)
    return torch.bincount(index, weights=values, minlength=size)


def running_sums(moments: torch.Tensor) -> torch.Tensor:
    """Return the cumulative sums of (channels, bins)."""
    return moments.cpu().cumsum(1).to(moments.device) if deterministic(moments) else moments.cumsum(1)


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
        scale = (1 / self.width).to(rows.dtype)
        start = self.minimum.to(rows.dtype)
        if fast_histogram.usable(rows):
            fast_histogram.fill(rows, start, scale, self.counts, self.sums, self.squares)
            return
        channels = rows.shape[0]
        size = channels * self.bins
        offset = torch.arange(0, size, self.bins, device=rows.device)[:, None]
        start, scale = start[:, None], scale[:, None]
        for chunk in chunks(rows):
            index = (chunk - start).mul_(scale).long().clamp_(0, self.bins - 1)
            if channels > 1:
                index += offset
            flat = index.reshape(-1)
            values = chunk.double()
            self.counts += torch.bincount(flat, minlength=size).reshape(channels, -1)
            self.sums += sums_by_index(flat, values.reshape(-1), size).reshape(channels, -1)
            self.squares += values.square().sum(1)

    def reduce(self) -> None:
        """Add up the histograms of all processes."""
        for tensor in (self.counts, self.sums, self.squares):
            reduce_(tensor, "sum")

    def quantile(self, fraction: float) -> torch.Tensor:
        """Return the value below which ``fraction`` (0 to 1) of the elements lie, to within a bin; (channels,)."""
        cumulative = running_sums(self.counts)
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
        index = self._borders(lower, step, levels).round_().long()
        counts, sums = (self._cells(moments, index) for moments in (self.counts, self.sums))
        values = lower[..., None] + step[..., None] * torch.arange(levels + 1, device=lower.device)
        return self.squares[:, None] + (counts * values.square() - 2 * values * sums).sum(-1)

    def overestimate(self, lower: torch.Tensor, upper: torch.Tensor, levels: int) -> torch.Tensor:
        """Return by how much :meth:`squared_error` can be above the truth; it is never below it.

        An element on the wrong side of a cell border is in a bin beside the border's place among the bins, and costs
        2 * step * (distance to the border) too much. Bins are known to within the rounding of their index, for which a
        hundredth of a bin is allowed, and the total to within that of float64 sums.

        Args:
            lower: (channels, candidates).
            upper: As ``lower``.
            levels: 2^bits - 1.

        Returns:
            (channels, candidates) float64.
        """
        lower, upper = lower.double(), upper.double()
        step = (upper - lower) / levels
        place = self._borders(lower, step, levels)
        index = place.round()
        distance = ((place - index).abs_() + 0.01) * self.width[:, None, None]
        beside = torch.nn.functional.pad(self.counts, (1, 1)).unfold(1, 2, 1).sum(2)
        near = beside.gather(1, index.long().flatten(1)).reshape(index.shape)
        return 2 * step * (near * distance).sum(-1) + 1e-12 * self.squares[:, None]

    def _borders(self, lower: torch.Tensor, step: torch.Tensor, levels: int) -> torch.Tensor:
        """Return (channels, candidates, levels): where the borders between cells lie, in bins from the minimum."""
        borders = torch.arange(levels, device=lower.device) + 0.5
        edges = lower[..., None] + step[..., None] * borders
        return ((edges - self.minimum[:, None, None]) / self.width[:, None, None]).nan_to_num_(0).clamp_(0, self.bins)

    @staticmethod
    def _cells(moments: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return (channels, candidates, cells) totals of per-bin moments between consecutive bin indices."""
        channels, candidates, borders = index.shape
        running = torch.nn.functional.pad(running_sums(moments), (1, 0))
        at = running.gather(1, index.reshape(channels, -1)).reshape(channels, candidates, borders)
        first = torch.zeros_like(at[..., :1])
        last = running[:, -1:, None].expand(channels, candidates, 1)
        return torch.cat([at, last], -1) - torch.cat([first, at], -1)
