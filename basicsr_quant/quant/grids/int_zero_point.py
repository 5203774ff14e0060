"""The grid of PassionSR's learnable boundary quantizer: bounds shifted so that zero is representable."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from basicsr_quant.quant.grids.base import working_dtype

SMALLEST_STEP = 1e-8


def round_half_away(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest integer, halves away from zero."""
    return torch.sign(x) * torch.floor(torch.abs(x) + 0.5)


def step_and_zero_point(lower: torch.Tensor, upper: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the step (at least 1e-8) and the integer zero point of two bounds."""
    step = ((upper - lower) / levels).clamp_min(SMALLEST_STEP)
    return step, round_half_away(lower / step)


class _FakeQuantize(torch.autograd.Function):
    """y = d * (clamp(r(x / d) - z, 0, Q) + z), and its straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int,
                full: bool) -> torch.Tensor:
        ctx.save_for_backward(x, lower, upper)
        ctx.levels, ctx.full = levels, full
        step, zero_point = step_and_zero_point(lower, upper, levels)
        return (torch.clamp(round_half_away(x / step) - zero_point, 0, levels) + zero_point) * step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, lower, upper = ctx.saved_tensors
        levels = ctx.levels
        step, zero_point = step_and_zero_point(lower, upper, levels)
        scaled = x / step
        rounded = round_half_away(scaled)
        low, high = rounded - zero_point < 0, rounded - zero_point > levels
        inside = ~(low | high)
        grad_x = gradient * inside if ctx.needs_input_grad[0] else None
        slip = zero_point - lower / step if ctx.full else zero_point
        through_step = torch.where(inside, rounded - scaled, slip) / levels
        grad_lower = (gradient * (low.to(gradient.dtype) - through_step)).sum_to_size(lower.shape)
        grad_upper = (gradient * (high.to(gradient.dtype) + through_step)).sum_to_size(upper.shape)
        return grad_x, grad_lower, grad_upper, None, None


class IntZeroPointGrid:
    """x -> d * (clamp(r(x / d) - z, 0, Q) + z), d = (u - l) / Q, z = r(l / d), Q = 2^b - 1.

    r rounds halves away from zero. The step d is at least 1e-8, so equal or crossed bounds give nearly a constant.

    Args:
        zero_point_gradient: ``full`` for the complete chain rule through the zero point; ``detached`` for that of the
            released code, which takes the step inside the zero point as a constant.

    Raises:
        ValueError: Another ``zero_point_gradient``.

    Source: PassionSR section "learnable boundary quantizer" as the released code has it.
    """

    def __init__(self, zero_point_gradient: Literal["full", "detached"] = "full") -> None:
        if zero_point_gradient not in ("full", "detached"):
            raise ValueError(f"zero_point_gradient must be full or detached, found {zero_point_gradient!r}")
        self.full = zero_point_gradient == "full"

    def fake_quantize(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return ``x`` rounded to the grid, differentiable in ``x`` and both bounds; as in ``FloatOffsetGrid``."""
        lower, upper = working_dtype(lower), working_dtype(upper)
        result: torch.Tensor = _FakeQuantize.apply(  # type: ignore[no-untyped-call]
            working_dtype(x), lower, upper, 2**bits - 1, self.full)
        return result.to(x.dtype)

    def encode(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the codes of ``x`` as uint8 in 0 .. 2^bits - 1."""
        step, zero_point = step_and_zero_point(working_dtype(lower), working_dtype(upper), 2**bits - 1)
        return torch.clamp(round_half_away(working_dtype(x) / step) - zero_point, 0, 2**bits - 1).to(torch.uint8)

    def decode(self, codes: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the values that codes stand for."""
        step, zero_point = step_and_zero_point(working_dtype(lower), working_dtype(upper), 2**bits - 1)
        return (codes.to(step.dtype) + zero_point) * step

    def affine(self, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return step and first value in float64; see :meth:`basicsr_quant.quant.grids.base.Grid.affine`."""
        step, zero_point = step_and_zero_point(working_dtype(lower), working_dtype(upper), 2**bits - 1)
        return step.double(), zero_point.double() * step.double()
