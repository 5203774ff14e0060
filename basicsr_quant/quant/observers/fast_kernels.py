"""Loops of the bound search in numba, which is imported with this module: one reading of the data each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from basicsr_quant.quant.compiled import add, compiled

Floats = npt.NDArray[Any]

BLOCK = 2048


def _histogram(row: Floats, start: Any, scale: Any, counts: Floats, sums: Floats) -> float:
    """Add a row to the counts and sums of its bins and return its sum of squares.

    The bin of x is int((x - start) * scale), in the row's own precision. Two tables are filled in turn, since the next
    element often falls into the bin that the last one is still being added to.

    Args:
        row: (elements,) float32 or float64.
        start: Lower end of the first bin, in the row's dtype.
        scale: Bins per unit, in the row's dtype.
        counts: (bins,) float64.
        sums: As ``counts``.
    """
    bins = counts.size
    zero, last = row.dtype.type(0), row.dtype.type(bins - 1)
    counts_a, counts_b = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    sums_a, sums_b = np.zeros(bins), np.zeros(bins)
    places = np.empty(BLOCK, np.uint32)
    squares = 0.0
    for first in range(0, row.size, BLOCK):
        piece = row[first:first + BLOCK]
        for i in range(piece.size):
            value = piece[i]
            place = (value - start) * scale
            place = place if place > zero else zero
            places[i] = np.uint32(np.int32(place if place < last else last))
            squares = add(squares, np.float64(value) * np.float64(value))
        half = piece.size // 2
        piece_a, piece_b = piece[:half], piece[half:2 * half]
        places_a, places_b = places[:half], places[half:2 * half]
        for i in range(half):
            counts_a[places_a[i]] += 1
            sums_a[places_a[i]] += piece_a[i]
            counts_b[places_b[i]] += 1
            sums_b[places_b[i]] += piece_b[i]
        for i in range(2 * half, piece.size):
            counts_a[places[i]] += 1
            sums_a[places[i]] += piece[i]
    for i in range(bins):
        counts[i] += counts_a[i] + counts_b[i]
        sums[i] += sums_a[i] + sums_b[i]
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
        piece = row[first:first + BLOCK]
        for candidate in range(lower.size):
            low, high, width = lower[candidate], upper[candidate], step[candidate]
            total = 0.0
            for i in range(piece.size):
                value = piece[i]
                code = np.rint((min(max(value, low), high) - low) / width)
                error = np.float64(value - (code * width + low))
                total = add(total, error * error)
            errors[candidate] += total


histogram = compiled(_histogram)
squared_errors = compiled(_squared_errors)
