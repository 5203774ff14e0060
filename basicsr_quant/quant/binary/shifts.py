"""Learned shifts and slopes per channel around a binary convolution."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class LearnableBias(nn.Module):
    """x + b, b per channel and 0 at first. Before a sign it moves the threshold.

    Args:
        channels: C.

    Source: ReActNet (RSign); BI-DiffSR eq. 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shift (B, C, H, W)."""
        return x + self.bias


class RPReLU(nn.Module):
    """PReLU(x + p) + q, with p, q and the slope per channel.

    Args:
        channels: C.
        slope: First value of the slope on the negative side.

    Source: ReActNet, eq. 4; BI-DiffSR eq. 9.
    """

    def __init__(self, channels: int, slope: float = 0.25) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.slope = nn.Parameter(torch.full((1, channels, 1, 1), slope))
        self.shift_out = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform (B, C, H, W); the parameters may have been replaced by ones of shape (B, C, 1, 1)."""
        shifted = x + self.shift_in
        slope = self.slope.flatten().to(shifted.dtype)
        if self.slope.shape[0] == 1:
            bent = functional.prelu(shifted, slope)
        else:
            bent = functional.prelu(shifted.reshape(1, -1, *x.shape[2:]), slope).view(x.shape)
        return bent + self.shift_out
