"""The grid of 2DQuant: 2^b equidistant values from the lower bound to the upper, both representable."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from basicsr_quant.quant.grids import fast_float_offset
from basicsr_quant.quant.grids.base import working_dtype


def sum_of_products(first: torch.Tensor, second: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return the sum of ``first * second`` over all dimensions in which ``shape`` has one element."""
    if shape.numel() == 1:
        return torch.dot(first.reshape(-1), second.reshape(-1)).reshape(shape)
    return (first * second).sum_to_size(shape)


def clip(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Return ``torch.clamp(x, lower, upper)``, which on a CPU is no vector loop, in two that are."""
    if x.device.type == "cpu":
        clipped = torch.maximum(x, lower)
        return torch.minimum(clipped, upper, out=clipped)
    return torch.clamp(x, lower, upper)


class _FakeQuantize(torch.autograd.Function):
    """y = s * round((clip(x, l, u) - l) / s) + l with s = (u - l) / N, and the exact straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, levels: int) -> torch.Tensor:
        ctx.fast = fast_float_offset.usable(x, lower, upper)
        ctx.levels = levels
        if ctx.fast:
            x = fast_float_offset.dense(x) if lower.numel() == 1 else x.contiguous()
            ctx.save_for_backward(x, lower, upper)
            return fast_float_offset.forward(x, lower, upper, levels)
        ctx.save_for_backward(x, lower, upper)
        step = (upper - lower) / levels
        return clip(x, lower, upper).sub_(lower).div_(step).round_().mul_(step).add_(lower)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, lower, upper = ctx.saved_tensors
        if ctx.fast:
            return *fast_float_offset.backward(x, gradient, lower, upper, ctx.levels), None
        grad_x = grad_lower = grad_upper = None
        clipped = clip(x, lower, upper)
        if ctx.needs_input_grad[0]:
            grad_x = torch.where(x == clipped, gradient, 0.0)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            scaled = clipped.sub_(lower).div_((upper - lower) / ctx.levels)
            residual = torch.round(scaled).sub_(scaled)
            through_step = sum_of_products(residual, gradient, lower.shape) / ctx.levels
            grad_upper = sum_of_products(torch.ge(x, upper, out=residual), gradient, upper.shape) + through_step
            grad_lower = sum_of_products(torch.le(x, lower, out=residual), gradient, lower.shape) - through_step
        return grad_x, grad_lower, grad_upper, None


class FloatOffsetGrid:
    """x -> s * r + l, r = round-half-to-even((clip(x, l, u) - l) / s), s = (u - l) / (2^b - 1).

    Zero is in general not on the grid. Crossed bounds (l > u) give the constant u; they are refused where bounds are
    made (calibration, loading), not here.

    Source: 2DQuant eq. 1 and, for the gradients, its appendix as the released code has it: the input's gradient passes
    where l <= x <= u; the upper bound gets sum(g * (r - t)) / N + sum of g where x >= u, the lower bound its mirror
    image; an element equal to a bound counts for both.
    """

    def fake_quantize(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return ``x`` rounded to the grid, differentiable in ``x`` and both bounds.

        Args:
            x: Any shape.
            lower: Shape that broadcasts against ``x``: (1,) per tensor.
            upper: As ``lower``.
            bits: 1 to 8.
        """
        lower, upper = working_dtype(lower), working_dtype(upper)
        result: torch.Tensor = _FakeQuantize.apply(  # type: ignore[no-untyped-call]
            working_dtype(x), lower, upper, 2**bits - 1)
        return result.to(x.dtype)

    def encode(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the codes of ``x`` as uint8 in 0 .. 2^bits - 1."""
        lower, upper, levels = working_dtype(lower), working_dtype(upper), 2**bits - 1
        codes = torch.round((torch.clamp(working_dtype(x), lower, upper) - lower) / ((upper - lower) / levels))
        return codes.clamp_(0, levels).to(torch.uint8)

    def decode(self, codes: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the values that codes stand for."""
        lower, upper = working_dtype(lower), working_dtype(upper)
        values: torch.Tensor = codes.to(lower.dtype) * ((upper - lower) / (2**bits - 1)) + lower
        return values

    def affine(self, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return step and first value in float64; see :meth:`basicsr_quant.quant.grids.base.Grid.affine`."""
        lower, upper = working_dtype(lower), working_dtype(upper)
        return ((upper - lower) / (2**bits - 1)).double(), lower.double()
