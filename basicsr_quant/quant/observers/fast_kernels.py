"""Loops of the bound search in numba, which is imported with this module: one reading of the data each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]

BLOCK = 2048
LANES = 2


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile on first use, from the cache of an earlier process if there is a folder to keep one in."""
    try:
        kernel: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
    except RuntimeError:
        kernel = numba.njit(nogil=True, error_model="numpy", **options)(function)
    return kernel


def _sum(first: float, second: float) -> float:
    """Return the sum; only here may terms be added in another order, which is what lets a loop run on vectors."""
    return first + second


_add = _compiled(_sum, fastmath={"reassoc"})


def _histogram(row: Floats, start: Any, scale: Any, counts: Floats, sums: Floats) -> float:
    """Add a row to the counts and sums of its bins and return its sum of squares.

    The bin of x is int((x - start) * scale), in the row's own precision. Neighbours go to different tables, since the
    next element often falls into the bin that the last one is still being added to.

    Args:
        row: (elements,) float32 or float64.
        start: Lower end of the first bin, in the row's dtype.
        scale: Bins per unit, in the row's dtype.
        counts: (bins,) float64.
        sums: As ``counts``.
    """
    bins = counts.size
    zero, last = row.dtype.type(0), row.dtype.type(bins - 1)
    tables = np.zeros((LANES, bins, 2))
    places = np.empty(BLOCK, np.int32)
    squares = 0.0
    for first in range(0, row.size, BLOCK):
        size = min(BLOCK, row.size - first)
        for i in range(size):
            value = row[first + i]
            place = (value - start) * scale
            place = place if place > zero else zero
            places[i] = np.int32(place if place < last else last)
            squares = _add(squares, np.float64(value) * np.float64(value))
        whole = size // LANES * LANES
        for i in range(0, whole, LANES):
            for lane in range(LANES):
                tables[lane, places[i + lane], 0] += 1.0
                tables[lane, places[i + lane], 1] += row[first + i + lane]
        for i in range(whole, size):
            tables[0, places[i], 0] += 1.0
            tables[0, places[i], 1] += row[first + i]
    for lane in range(LANES):
        for i in range(bins):
            counts[i] += tables[lane, i, 0]
            sums[i] += tables[lane, i, 1]
    return squares


def _squared_errors(row: Floats, lower: Floats, upper: Floats, step: Floats, errors: Floats) -> None:
    """Add the squared error of rounding a row on the grid ``float_offset`` for several bounds at once.

    Every operation is the grid's own, in the same order and in the row's precision; the errors are summed in float64.

    Args:
        row: (elements,) float32 or float64.
        lower: (candidates,) in the row's dtype.
        upper: As ``lower``.
        step: As ``lower``; (upper - lower) / (2^bits - 1).
        errors: (candidates,) float64.
    """
    for first in range(0, row.size, BLOCK):
        size = min(BLOCK, row.size - first)
        for candidate in range(lower.size):
            low, high, width = lower[candidate], upper[candidate], step[candidate]
            total = 0.0
            for i in range(size):
                value = row[first + i]
                code = np.rint((min(max(value, low), high) - low) / width)
                error = np.float64(value - (code * width + low))
                total = _add(total, error * error)
            errors[candidate] += total


histogram = _compiled(_histogram)
squared_errors = _compiled(_squared_errors)
