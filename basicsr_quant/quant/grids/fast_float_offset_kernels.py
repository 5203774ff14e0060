"""The grid ``float_offset`` in numba, which is imported with this module: one reading of the data each way."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from basicsr_quant.quant.compiled import add, compiled

Floats = npt.NDArray[Any]

BLOCK = 2048


def _forward(x: Floats, lower: Floats, upper: Floats, step: Floats, y: Floats) -> None:
    """Round rows to the grid; every operation is torch's, in the same order and precision.

    Args:
        x: (channels, elements) float32.
        lower: (channels,) float32.
        upper: As ``lower``.
        step: As ``lower``; (upper - lower) / (2^bits - 1).
        y: Result, as ``x``.
    """
    for channel in range(x.shape[0]):
        low, high, width = lower[channel], upper[channel], step[channel]
        for i in range(x.shape[1]):
            value = x[channel, i]
            value = low if low > value else value
            value = high if high < value else value
            y[channel, i] = np.rint((value - low) / width) * width + low


def _backward(x: Floats, gradient: Floats, lower: Floats, upper: Floats, step: Floats, grad_x: Floats,
              sums: Floats) -> None:
    """Take a gradient back through the rounding of rows.

    Sums run in float32 over a block, each lane of a vector by itself, and in float64 over the blocks.

    Args:
        x: (channels, elements) float32.
        gradient: As ``x``, of the result.
        lower: (channels,) float32.
        upper: As ``lower``.
        step: As ``lower``.
        grad_x: Result, as ``x``.
        sums: Result, (channels, 3) float64: sums of gradient * (rounded - exact code), of the gradient where x <= lower
            and of that where x >= upper.
    """
    zero = x.dtype.type(0)
    for channel in range(x.shape[0]):
        low, high, width = lower[channel], upper[channel], step[channel]
        known = low == low and high == high
        total_residuals = total_below = total_above = 0.0
        for first in range(0, x.shape[1], BLOCK):
            row, row_gradient = x[channel, first:first + BLOCK], gradient[channel, first:first + BLOCK]
            row_result = grad_x[channel, first:first + BLOCK]
            residuals = below = above = zero
            for i in range(row.size):
                value, g = row[i], row_gradient[i]
                clipped = low if low > value else value
                clipped = high if high < clipped else clipped
                code = (clipped - low) / width
                row_result[i] = g if known and clipped == value else zero
                residuals = add(residuals, g * (np.rint(code) - code))
                below = add(below, g if value <= low else zero)
                above = add(above, g if value >= high else zero)
            total_residuals += residuals
            total_below += below
            total_above += above
        sums[channel, 0], sums[channel, 1], sums[channel, 2] = total_residuals, total_below, total_above


forward = compiled(_forward)
backward = compiled(_backward)
