"""The sign of a tensor, and gradients that replace its own, which is zero almost everywhere."""

from __future__ import annotations

from typing import Any, Literal

import torch

SignZero = Literal["zero", "plus_one"]


def sign(x: torch.Tensor, sign_zero: SignZero = "zero") -> torch.Tensor:
    """Return the sign of every element, in the dtype of ``x``.

    Args:
        x: Any shape.
        sign_zero: What 0 becomes: ``zero`` keeps it (BI-DiffSR's released code), ``plus_one`` makes it +1 (its paper,
            eq. 5), so that one bit holds every value.
    """
    signs = torch.sign(x)
    return signs if sign_zero == "zero" else torch.sign(signs + 0.5)


class _ReplacedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


def replace_gradient(x: torch.Tensor, value: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return ``value`` exactly, with d value / d x taken to be ``slope``.

    Args:
        x: What the gradient flows to.
        value: Any function of ``x``, of its shape.
        slope: Shape of ``x``; a constant in the backward pass.
    """
    result: torch.Tensor = _ReplacedGradient.apply(x, value.detach(), slope.detach())  # type: ignore[no-untyped-call]
    return result


def learns(x: torch.Tensor) -> bool:
    """Return whether a gradient of ``x`` will be asked for; if not, nobody needs a slope."""
    return torch.is_grad_enabled() and x.requires_grad
