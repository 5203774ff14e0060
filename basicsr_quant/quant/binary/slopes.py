"""Surrogate gradients: what is used in place of the derivative of a sign, one class each.

A slope is called with the tensor and, for weights, with its scale; it returns d (scale * sign x) / d x.
"""

from __future__ import annotations

import torch
from torch import nn


class Slope(nn.Module):
    """The identity: the gradient passes unchanged (DoReFa's weights, whose scale is a constant)."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the slope at every element.

        Args:
            x: Any shape.
            scale: Factor on the sign, shape that broadcasts against ``x``; None for activations.
        """
        return torch.ones_like(x)


class ClippedSlope(Slope):
    """1 where abs(x) <= 1, else 0; not multiplied by the scale.

    Source: hard straight-through estimator (BNN); BI-DiffSR specification 2.2 for weights.
    """

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the slope at every element."""
        return (x.abs() <= 1).to(x.dtype)


class PolynomialSlope(Slope):
    """2 - 2 abs(x) where abs(x) < 1, else 0: the derivative of a piecewise quadratic.

    Source: Bi-Real Net; BI-DiffSR specification 2.1. Infinite values get 0.
    """

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the slope at every element."""
        return (2 - 2 * x.abs()).clamp_min(0)


class ScaledClippedSlope(Slope):
    """1 / n + scale * 1[abs(x) <= 1], n weights per output channel: gradient through the scale and the sign.

    Source: XNOR-Net, eq. 11.
    """

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the slope at every element of a weight."""
        clipped = (x.abs() <= 1).to(x.dtype)
        return 1 / x[0].numel() + (clipped if scale is None else clipped * scale)


class ErrorDecaySlope(Slope):
    """scale * k t (1 - tanh(t x)^2): from nearly linear to nearly the sign's own as training goes on.

    Source: IR-Net, eq. 11 and 12 (error decay estimator).

    Args:
        lowest: t at the start; k = max(1 / t, 1).
        highest: t at the end.
    """

    temperature: torch.Tensor

    def __init__(self, lowest: float = 0.1, highest: float = 10.0) -> None:
        super().__init__()
        self.lowest, self.highest = lowest, highest
        self.register_buffer("temperature", torch.tensor(lowest), persistent=False)

    def set_progress(self, fraction: float) -> None:
        """Set t = lowest * (highest / lowest)^fraction; ``fraction`` of the training, 0 to 1, is behind us."""
        self.temperature.fill_(self.lowest * (self.highest / self.lowest) ** fraction)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the slope at every element."""
        temperature = self.temperature.to(x.dtype)
        height = temperature * (1 / temperature).clamp_min(1)
        slope = height * (1 - torch.tanh(temperature * x).square())
        return slope if scale is None else slope * scale


def set_progress(model: nn.Module, fraction: float) -> None:
    """Tell every slope of a model that depends on it how much of the training is done, 0 to 1."""
    for module in model.modules():
        if isinstance(module, ErrorDecaySlope):
            module.set_progress(fraction)
