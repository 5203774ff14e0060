"""The grids of activations as the kernels know them."""

from __future__ import annotations

import ctypes

import torch

from basicsr_quant.deploy.native.library import GridLayout, Library, address, best_kernels, float_rows
from basicsr_quant.quant.grids.base import Grid
from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid
from basicsr_quant.quant.grids.int_zero_point import IntZeroPointGrid, step_and_zero_point
from basicsr_quant.quant.grids.symmetric_step import SymmetricStepGrid, step_and_negatives
from basicsr_quant.quant.quantizer import Quantizer

FLOAT_OFFSET, HALF_AWAY, HALF_EVEN = 0, 1, 2


class ActivationGrid:
    """The grid of one activation tensor, per tensor.

    Args:
        grid: Which grid.
        lower: One element.
        upper: One element.
        bits: 1 to 8.

    Raises:
        ValueError: The bounds are not one pair with lower < upper, or the grid is unknown to the kernels.
    """

    def __init__(self, grid: Grid, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> None:
        if lower.numel() != 1 or not bool(lower < upper):
            raise ValueError("native kernels take one pair of bounds, the lower below the upper")
        lower, upper, levels = lower.detach().float(), upper.detach().float(), 2**bits - 1
        if isinstance(grid, FloatOffsetGrid):
            step, zero_point, rounding = (upper - lower) / levels, torch.zeros(1), FLOAT_OFFSET
        elif isinstance(grid, IntZeroPointGrid):
            (step, zero_point), rounding = step_and_zero_point(lower, upper, levels), HALF_AWAY
        elif isinstance(grid, SymmetricStepGrid):
            (step, negatives), rounding = step_and_negatives(lower, upper, bits), HALF_EVEN
            zero_point = -negatives
        else:
            raise ValueError(f"native kernels do not know the grid {type(grid).__name__}")
        self.layout = GridLayout(lower.item(), upper.item(), step.item(), zero_point.item(), 1 / step.item(), levels,
                                 rounding)
        self.levels, self.step = levels, step.item()
        self.first = lower.item() if rounding == FLOAT_OFFSET else self.step * zero_point.item()

    @classmethod
    def of(cls, quantizer: Quantizer) -> ActivationGrid:
        """Return the grid of a calibrated quantizer."""
        return cls(quantizer.grid, quantizer.lower_bound, quantizer.upper_bound, quantizer.bits)

    @property
    def code_of_zero(self) -> int:
        """The code whose value is nearest to zero."""
        return round(min(max(-self.first / self.step, 0), self.levels))

    def encode(self, x: torch.Tensor, kernels: Library | None = None) -> torch.Tensor:
        """Return the codes of a float32 tensor, uint8 of its shape."""
        x = float_rows(x)
        codes = torch.empty(x.shape, dtype=torch.uint8)
        (kernels or best_kernels()).quantize(address(x), x.numel(), ctypes.byref(self.layout), address(codes))
        return codes
