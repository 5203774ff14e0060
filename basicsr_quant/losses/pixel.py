"""Losses between two images, pixel by pixel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.errors import UserError

Reduction = Literal["mean", "sum"]


class _PixelLoss(nn.Module):
    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise UserError(f"reduction '{reduction}' of {type(self).__name__} is unknown; write mean or sum")
        self.loss_weight = loss_weight
        self.reduction = reduction

    def _reduce(self, values: torch.Tensor) -> torch.Tensor:
        return self.loss_weight * (values.mean() if self.reduction == "mean" else values.sum())


def _same_shape(prediction: torch.Tensor, target: torch.Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")


class L1Loss(_PixelLoss):
    """Mean absolute error.

    Args:
        loss_weight: Factor on the result.
        reduction: ``mean`` or ``sum`` over all elements of the batch.

    Raises:
        UserError: The reduction is unknown.
    """

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            prediction: (B, C, H, W), any range.
            target: Of the same shape.

        Returns:
            A scalar.

        Raises:
            ValueError: The shapes differ.
        """
        _same_shape(prediction, target)
        return self._reduce(functional.l1_loss(prediction, target, reduction="none"))


class MSELoss(_PixelLoss):
    """Mean squared error.

    Args:
        loss_weight: Factor on the result.
        reduction: ``mean`` or ``sum`` over all elements of the batch.

    Raises:
        UserError: The reduction is unknown.
    """

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch; see :meth:`L1Loss.forward`."""
        _same_shape(prediction, target)
        return self._reduce(functional.mse_loss(prediction, target, reduction="none"))


class CharbonnierLoss(_PixelLoss):
    """Smooth L1: sqrt((prediction - target)^2 + eps).

    Args:
        loss_weight: Factor on the result.
        reduction: ``mean`` or ``sum`` over all elements of the batch.
        eps: Positive; its square root is the value at equal images.

    Raises:
        UserError: The reduction is unknown, or eps is not positive.

    Source: Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed imaging", 1994.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = "mean", eps: float = 1e-12) -> None:
        super().__init__(loss_weight, reduction)
        if eps <= 0:
            raise UserError(f"eps {eps} of CharbonnierLoss is not positive; write a small number, such as 1e-12")
        self.eps = eps

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch; see :meth:`L1Loss.forward`."""
        _same_shape(prediction, target)
        return self._reduce(torch.sqrt((prediction - target) ** 2 + self.eps))
