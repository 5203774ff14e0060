"""Activations with two values."""

from __future__ import annotations

import torch
from torch import nn

from basicsr_quant.quant.binary.sign import SignZero, learns, replace_gradient, sign
from basicsr_quant.quant.binary.slopes import Slope


class SignActivation(nn.Module):
    """x -> sign x in {-1, (0,) +1}, with a surrogate gradient.

    Args:
        slope: The surrogate.
        sign_zero: See :func:`basicsr_quant.quant.binary.sign.sign`.
    """

    def __init__(self, slope: Slope, sign_zero: SignZero = "zero") -> None:
        super().__init__()
        self.slope, self.sign_zero = slope, sign_zero

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the signs of a tensor of any shape, in its dtype."""
        signs = sign(x, self.sign_zero)
        return replace_gradient(x, signs, self.slope(x)) if learns(x) else signs


class StepActivation(nn.Module):
    """x -> round(clip(x, 0, 1)) in {0, 1}; the gradient passes where 0 <= x <= 1.

    Source: DoReFa-Net, eq. 5 and 9 with one bit.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return zeros and ones of the shape and dtype of ``x``."""
        steps = torch.clamp(x, 0, 1).round()
        if not learns(x):
            return steps
        return replace_gradient(x, steps, ((x >= 0) & (x <= 1)).to(x.dtype))
