"""The bound search's passes over large CPU tensors by numba (extra ``[fast]``), where it is installed.

Results are those of plain torch up to the order in which float64 numbers are summed.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from basicsr_quant.quant import fast

SMALLEST = 2**16
PIECE = 2**18


def _kernels() -> ModuleType:
    return fast.kernels("basicsr_quant.quant.observers.fast_kernels")


def usable(rows: torch.Tensor) -> bool:
    """Return whether the fast path takes (channels, elements): numba is there and on, the tensor large and on the CPU.

    Small tensors gain nothing and would only cost the import.
    """
    return rows.device.type == "cpu" and rows.numel() >= SMALLEST and fast.switched_on()


def fill(rows: torch.Tensor, start: torch.Tensor, scale: torch.Tensor, counts: torch.Tensor, sums: torch.Tensor,
         squares: torch.Tensor) -> None:
    """Add rows to a histogram, in place.

    Args:
        rows: (channels, elements) float32 or float64.
        start: (channels,) lower end of the first bin, in the dtype of ``rows``.
        scale: (channels,) bins per unit, in the dtype of ``rows``.
        counts: (channels, bins) float64.
        sums: As ``counts``.
        squares: (channels,) float64, sums of squares.
    """
    kernels = _kernels()
    starts, scales = start.numpy(), scale.numpy()
    bins = counts.shape[1]

    def histogram(piece: npt.NDArray[Any], channel: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], float]:
        own_counts, own_sums = np.zeros(bins), np.zeros(bins)
        total = kernels.histogram(piece, starts[channel], scales[channel], own_counts, own_sums)
        return own_counts, own_sums, total

    for channel, row in enumerate(rows.detach().contiguous().numpy()):
        for own_counts, own_sums, total in fast.in_threads(functools.partial(histogram, channel=channel), _pieces(row)):
            counts[channel] += torch.from_numpy(own_counts)
            sums[channel] += torch.from_numpy(own_sums)
            squares[channel] += total


def squared_errors(rows: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int) -> torch.Tensor:
    """Return the squared error of rounding rows on the grid ``float_offset`` between several bounds.

    Args:
        rows: (channels, elements) float32 or float64.
        lower: (channels, candidates) in the dtype of ``rows``.
        upper: As ``lower``.
        levels: 2^bits - 1.

    Returns:
        (channels, candidates) float64.
    """
    kernels = _kernels()
    lowers, uppers, steps = (bound.contiguous().numpy() for bound in (lower, upper, (upper - lower) / levels))

    def score(piece: npt.NDArray[Any], channel: int) -> npt.NDArray[Any]:
        own = np.zeros(lowers.shape[1])
        kernels.squared_errors(piece, lowers[channel], uppers[channel], steps[channel], own)
        return own

    errors = [np.sum(fast.in_threads(functools.partial(score, channel=channel), _pieces(row)), axis=0)
              for channel, row in enumerate(rows.detach().contiguous().numpy())]
    return torch.from_numpy(np.stack(errors))


def _pieces(row: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Cut a row into equal pieces, one for each of torch's threads if the row is long enough."""
    return np.array_split(row, fast.thread_count(row.size, PIECE))
