"""The grid of LSQ: multiples of one learned step, codes signed or unsigned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from basicsr_quant.quant.grids.base import working_dtype
from basicsr_quant.quant.grids.int_zero_point import SMALLEST_STEP


def step_and_negatives(lower: torch.Tensor, upper: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the step (at least 1e-8) and Qn, the number of codes below zero, of two bounds."""
    signed = lower < 0
    step = (upper - torch.where(signed, lower, 0.0)) / (2**bits - 1)
    return step.clamp_min(SMALLEST_STEP), torch.where(signed, 2.0 ** (bits - 1), 0.0).to(lower.dtype)


def step_bounds(step: torch.Tensor, signed: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bounds -Qn s and Qp s that stand for a step s, element by element signed or not."""
    half = 2 ** (bits - 1)
    return torch.where(signed, -half * step, 0.0), torch.where(signed, half - 1, 2 * half - 1) * step


class _FakeQuantize(torch.autograd.Function):
    """y = s * clamp(round(x / s), -Qn, Qp), and the gradients of LSQ."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        ctx.save_for_backward(x, lower, upper)
        ctx.bits = bits
        step, negatives = step_and_negatives(lower, upper, bits)
        return torch.clamp(torch.round(x / step), -negatives, 2**bits - 1 - negatives) * step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, lower, upper = ctx.saved_tensors
        levels = 2**ctx.bits - 1
        step, negatives = step_and_negatives(lower, upper, ctx.bits)
        positives = levels - negatives
        scaled = x / step
        inside = (scaled > -negatives) & (scaled < positives)
        grad_x = gradient * inside if ctx.needs_input_grad[0] else None
        slope = torch.where(inside, torch.round(scaled) - scaled, torch.clamp(scaled, -negatives, positives))
        shared = x.numel() / lower.numel()
        grad_step = (gradient * slope).sum_to_size(lower.shape) / (math.sqrt(shared) * positives.clamp_min(1).sqrt())
        return grad_x, torch.where(lower < 0, -grad_step / levels, 0.0), grad_step / levels, None


class SymmetricStepGrid:
    """x -> s * clamp(round(x / s), -Qn, Qp) with one learned step s; halves are rounded to even.

    A lower bound below zero means signed codes, Qn = 2^(b-1), Qp = 2^(b-1) - 1 and s = (u - l) / (2^b - 1); otherwise
    codes are unsigned, Qn = 0, Qp = 2^b - 1 and s = u / Qp, and the lower bound gets no gradient. Of signed bounds only
    the width counts; those of observer ``step_size`` are -Qn s and Qp s. The step is at least 1e-8.

    The step's gradient sums g * (round(x / s) - x / s) inside, -g Qn below and g Qp above, over all elements that
    share the step, and is divided by the square root of their number times Qp. The bounds get it by the chain rule, in
    opposite directions, so that a signed range keeps its middle under Adam.

    Source: Esser et al., "Learned step size quantization" (ICLR 2020), sections 2.1 and 2.2.
    """

    def fake_quantize(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return ``x`` rounded to the grid, differentiable in ``x`` and both bounds; as in ``FloatOffsetGrid``."""
        result: torch.Tensor = _FakeQuantize.apply(  # type: ignore[no-untyped-call]
            working_dtype(x), working_dtype(lower), working_dtype(upper), bits)
        return result.to(x.dtype)

    def encode(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the codes of ``x`` as uint8 in 0 .. 2^bits - 1; Qn stands for zero."""
        step, negatives = step_and_negatives(working_dtype(lower), working_dtype(upper), bits)
        return torch.clamp(torch.round(working_dtype(x) / step) + negatives, 0, 2**bits - 1).to(torch.uint8)

    def decode(self, codes: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the values that codes stand for."""
        step, negatives = step_and_negatives(working_dtype(lower), working_dtype(upper), bits)
        return (codes.to(step.dtype) - negatives) * step

    def affine(self, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return step and first value in float64; see :meth:`basicsr_quant.quant.grids.base.Grid.affine`."""
        step, negatives = step_and_negatives(working_dtype(lower), working_dtype(upper), bits)
        return step.double(), -negatives.double() * step.double()
