"""The unit of binary networks: shift, sign, convolution, RPReLU, identity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from basicsr_quant.quant.binary.conv2d import BinaryConv2d
from basicsr_quant.quant.binary.shifts import LearnableBias, RPReLU
from basicsr_quant.quant.binary.timestep import Group, TimestepAware
from basicsr_quant.quant.binary.weights import WeightBinarizer


@dataclass(frozen=True)
class Binarizer:
    """Of which parts a binarization method composes a unit.

    Attributes:
        activation: Makes the activation binarizer.
        weight: Makes the weight binarizer.
        learnable: Whether there are a bias before the sign and an RPReLU behind the convolution.
        identity: Whether the input is added where shapes allow.
        identity_first: Whether it is added before the RPReLU (ReActNet) or after (BBCU, BI-DiffSR).
        spatial_scale: See :class:`basicsr_quant.quant.binary.conv2d.BinaryConv2d`.
    """

    activation: Callable[[], nn.Module]
    weight: Callable[[], WeightBinarizer]
    learnable: bool = False
    identity: bool = False
    identity_first: bool = False
    spatial_scale: bool = False


class BinaryUnit(nn.Module):
    """conv(sign(x + b)), then RPReLU and identity as the binarizer has them.

    Args:
        in_channels: C of the input.
        out_channels: O of the output.
        kernel_size: 1 or 3; stride 1, same size.
        binarizer: The method.
        shift_groups: Number of timestep groups of the bias (TaR).
        activation_groups: Number of timestep groups of the RPReLU (TaA).

    Source: BI-DiffSR section 3.3, figure 4; the order is that of its released code (specification 1.3).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, binarizer: Binarizer,
                 shift_groups: int = 1, activation_groups: int = 1) -> None:
        super().__init__()
        learnable = binarizer.learnable
        self.shift = TimestepAware(lambda: LearnableBias(in_channels), shift_groups) if learnable else None
        self.binary = BinaryConv2d(in_channels, out_channels, kernel_size, binarizer.weight(), binarizer.activation(),
                                   spatial_scale=binarizer.spatial_scale)
        self.activation = TimestepAware(lambda: RPReLU(out_channels), activation_groups) if learnable else None
        self.identity = binarizer.identity and in_channels == out_channels
        self.identity_first = binarizer.identity_first

    def forward(self, x: torch.Tensor, group: Group = 0) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H, W).

        Args:
            x: Input; it is what the identity carries.
            group: See :class:`basicsr_quant.quant.binary.timestep.TimestepAware`.
        """
        y: torch.Tensor = self.binary(x if self.shift is None else self.shift(x, group))
        if self.identity and self.identity_first:
            y = y + x
        if self.activation is not None:
            y = self.activation(y, group)
        return y + x if self.identity and not self.identity_first else y
