"""Blocks that the noise-prediction networks share, in full precision or around binary convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_quant.archs.seeded_dropout import seeded_dropout
from basicsr_quant.quant.binary.timestep import Group
from basicsr_quant.quant.binary.unit import BinaryUnit

MakeConvolution = Callable[[int, int, int], nn.Module]
"""(C in, C out, kernel size) -> a convolution that keeps height and width."""


class Step(NamedTuple):
    """What the blocks know of one denoising step.

    Attributes:
        embedding: Of the timestep, (B, D).
        group: Timestep group, see :class:`basicsr_quant.quant.binary.timestep.TimestepAware`.
        dropout_draws: (B, blocks) in [0, 1); None draws from torch's generator.
    """

    embedding: Tensor
    group: Group
    dropout_draws: Tensor | None


def full_precision(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    """Return a convolution with bias that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def convolve(convolution: nn.Module, x: Tensor, group: Group) -> Tensor:
    """Apply a convolution; only a binary one asks for the timestep group."""
    return convolution(x, group) if isinstance(convolution, BinaryUnit) else convolution(x)


class ConvBlock(nn.Module):
    """GroupNorm, Swish, dropout, convolution.

    Args:
        channels: C of the input.
        norm_groups: Groups of the normalization.
        convolution: C -> O.
        dropout: Probability that an element is set to zero in training.
        dropout_index: Column of ``Step.dropout_draws``.
    """

    def __init__(self, channels: int, norm_groups: int, convolution: nn.Module, dropout: float = 0.0,
                 dropout_index: int = 0) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.conv = convolution
        self.dropout, self.dropout_index = dropout, dropout_index

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        x = functional.silu(self.norm(x))
        if self.training and self.dropout:
            if step.dropout_draws is None:
                x = functional.dropout(x, self.dropout)
            else:
                x = seeded_dropout(x, self.dropout, step.dropout_draws[:, self.dropout_index])
        return convolve(self.conv, x, step.group)


class SelfAttention(nn.Module):
    """One head of attention over all positions, beside an identity; always in full precision.

    Args:
        channels: C.
        norm_groups: Groups of the normalization.
    """

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, C, H, W)."""
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
        mixed = functional.scaled_dot_product_attention(*tokens.chunk(3, dim=-1))
        return self.out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape)) + x


class ResBlock(nn.Module):
    """Two :class:`ConvBlock` with the timestep's embedding added between them, beside a shortcut.

    Args:
        in_channels: C of the input.
        out_channels: O of the output.
        embedding: Width D of the timestep's embedding.
        norm_groups: Groups of the normalizations.
        convolution: Makes the 3x3 convolutions, and the 1x1 convolution beside them if C and O differ.
        dropout: Of the second block.
        dropout_index: Column of ``Step.dropout_draws``.
        swish_time: Whether the embedding passes a Swish before its Linear.
        attention: Whether :class:`SelfAttention` follows.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding: int, norm_groups: int,
                 convolution: MakeConvolution, dropout: float, dropout_index: int, swish_time: bool = True,
                 attention: bool = False) -> None:
        super().__init__()
        self.swish_time = swish_time
        self.time = nn.Linear(embedding, out_channels)
        self.block1 = ConvBlock(in_channels, norm_groups, convolution(in_channels, out_channels, 3))
        self.block2 = ConvBlock(out_channels, norm_groups, convolution(out_channels, out_channels, 3), dropout,
                                dropout_index)
        self.shortcut = convolution(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.attention = SelfAttention(out_channels, norm_groups) if attention else None

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        embedding = functional.silu(step.embedding) if self.swish_time else step.embedding
        hidden = self.block1(x, step) + self.time(embedding)[:, :, None, None]
        hidden = self.block2(hidden, step)
        output = hidden + (x if self.shortcut is None else convolve(self.shortcut, x, step.group))
        return output if self.attention is None else self.attention(output)


class Fusion(nn.Module):
    """Join a decoder feature and the encoder's of the same size: here, one behind the other, (B, C1 + C2, H, W)."""

    def forward(self, current: Tensor, skip: Tensor, step: Step) -> Tensor:
        """Return the joined feature; ``current`` is the decoder's, (B, C1, H, W), ``skip`` the encoder's."""
        return torch.cat([current, skip], dim=1)


class ConvFusion(Fusion):
    """Concatenation and a 1x1 convolution.

    Args:
        in_channels: Of both features together.
        out_channels: Of the result.
        convolution: Makes the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, convolution: MakeConvolution) -> None:
        super().__init__()
        self.conv = convolution(in_channels, out_channels, 1)

    def forward(self, current: Tensor, skip: Tensor, step: Step) -> Tensor:
        """Return the joined feature, (B, O, H, W)."""
        return convolve(self.conv, super().forward(current, skip, step), step.group)
