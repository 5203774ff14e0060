"""What all noise-prediction networks have in common: the way through encoder, bottleneck and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from basicsr_quant.archs.diffusion_blocks import ConvBlock, Fusion, MakeConvolution, ResBlock, Step, full_precision
from basicsr_quant.archs.timestep_embedding import TimestepEmbedding
from basicsr_quant.errors import UserError
from basicsr_quant.quant.binary.timestep import Group, group_of, groups_of

GroupChoice = Literal["first_sample", "per_sample"]


class DiffusionUNet(nn.Module):
    """A UNet that predicts the noise in an image, given a condition of the same size and the timestep.

    A subclass makes ``downs``, ``mid`` and ``ups`` by :meth:`assemble`. The output of every module of ``downs`` is kept
    and joined, last in first out, by the :class:`Fusion` modules of ``ups``.

    Args:
        in_channel: Channels of condition and image together; 3 for no condition.
        out_channel: Channels of the noise.
        inner_channel: Width C at full size; also that of the timestep's embedding.
        norm_groups: Groups of all normalizations.
        channel_mults: Width of every level over C; each level has half the size of the one before.
        dropout: In the second half of every residual block.
        total_step: Number of timesteps T.
        groups: Number of timestep groups K.
        group_choice: Which samples' timesteps choose the group of a batch where the caller does not:
            ``first_sample`` that of the first for all (released code), ``per_sample`` each its own.
        swish_time: Whether residual blocks put the timestep's embedding through a Swish.

    Raises:
        UserError: A width that is no multiple of ``norm_groups``, or a channel count that cannot be.
    """

    def __init__(self, in_channel: int, out_channel: int, inner_channel: int, norm_groups: int,
                 channel_mults: Sequence[int], dropout: float, total_step: int, groups: int = 1,
                 group_choice: GroupChoice = "first_sample", swish_time: bool = True) -> None:
        super().__init__()
        name = type(self).__name__
        if in_channel not in (3, 6):
            raise UserError(f"{name}: in_channel must be 6 (condition and image) or 3 (image), found {in_channel}")
        for width in [inner_channel * multiple for multiple in channel_mults]:
            if width % norm_groups:
                raise UserError(f"{name}: norm_groups {norm_groups} does not divide the width {width}; "
                                "change inner_channel, channel_mults or norm_groups")
        if groups < 1 or total_step < groups:
            raise UserError(f"{name}: {groups} timestep groups for {total_step} timesteps; give at least one group and "
                            "no more groups than timesteps")
        self.in_channel, self.out_channel, self.inner_channel = in_channel, out_channel, inner_channel
        self.norm_groups, self.dropout, self.swish_time = norm_groups, dropout, swish_time
        self.total_step, self.groups, self.group_choice = total_step, groups, group_choice
        self.widths = [inner_channel * multiple for multiple in channel_mults]
        self.window_multiple = self.minimum_size = 2 ** (len(channel_mults) - 1)
        self.residual_blocks = 0
        self.time_embedding = TimestepEmbedding(inner_channel)

    def refuse_widths(self, channel_mults: Sequence[int]) -> None:
        """Refuse levels that pixel shuffles cannot connect.

        Raises:
            UserError: A level is not twice as wide as the one before, or the first not ``inner_channel``.
        """
        if list(channel_mults) != [2**level for level in range(len(channel_mults))]:
            raise UserError(f"{type(self).__name__}: channel_mults {list(channel_mults)}; each level must be twice as "
                            "wide as the one before, starting from 1: 1, 2, 4, ...")

    def res_block(self, in_channels: int, out_channels: int, convolution: MakeConvolution,
                  attention: bool = False) -> ResBlock:
        """Return a residual block with this network's settings and the next column of the dropout draws."""
        self.residual_blocks += 1
        return ResBlock(in_channels, out_channels, self.inner_channel, self.norm_groups, convolution, self.dropout,
                        self.residual_blocks - 1, self.swish_time, attention)

    def first_convolution(self) -> nn.Module:
        """Return the convolution from images to ``inner_channel``."""
        return full_precision(self.in_channel, self.inner_channel, 3)

    def assemble(self, downs: Sequence[nn.Module], mid: Sequence[nn.Module], ups: Sequence[nn.Module]) -> None:
        """Take over the modules; the first of ``downs`` is the first convolution."""
        self.downs, self.mid, self.ups = nn.ModuleList(downs), nn.ModuleList(mid), nn.ModuleList(ups)
        self.final = ConvBlock(self.inner_channel, self.norm_groups,
                               full_precision(self.inner_channel, self.out_channel, 3))

    def group_of(self, timestep: int) -> int:
        """Return the group, 0 to K - 1, of a timestep that the host knows."""
        return group_of(timestep, self.groups, self.total_step)

    def training_draws(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Return the U[0, 1) draws that a training step needs: keyword argument of forward -> shape for one sample."""
        return {"dropout_draws": (self.residual_blocks,)} if self.dropout else {}

    def forward(self, image: Tensor, condition: Tensor, timesteps: Tensor, group: Group | None = None,
                dropout_draws: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            image: Noisy image, (B, 3, H, W); H and W multiples of ``window_multiple``.
            condition: (B, 3, H, W); comes first in the network's input.
            timesteps: (B, 1) or (B,), or (1, 1) for all, 0 to ``total_step`` - 1; not checked here.
            group: Timestep group of all samples as a number (:meth:`group_of`), which spares work and leaves other
                groups without gradient; or int64 (1,) or (B,); None finds it from ``timesteps``.
            dropout_draws: (B, blocks) in [0, 1). Used in training mode only; None draws from torch's generator.

        Returns:
            (B, out_channel, H, W).

        Raises:
            UserError: The image has a size that the network cannot halve often enough.
        """
        self._check_size(image)
        timesteps = timesteps.reshape(-1).expand(image.shape[0])
        if group is None:
            deciding = timesteps[:1] if self.group_choice == "first_sample" else timesteps
            group = groups_of(deciding, self.groups, self.total_step) if self.groups > 1 else 0
        step = Step(self.time_embedding(timesteps), group, dropout_draws)
        x = image if self.in_channel == 3 else torch.cat([condition, image], dim=1)
        return self._through(x, step)

    def _through(self, x: Tensor, step: Step) -> Tensor:
        """Run encoder, bottleneck and decoder."""
        skips = []
        for stage in self.downs:
            x = stage(x) if isinstance(stage, nn.Conv2d) else stage(x, step)
            skips.append(x)
        for stage in self.mid:
            x = stage(x, step)
        for stage in self.ups:
            x = stage(x, skips.pop(), step) if isinstance(stage, Fusion) else stage(x, step)
        return self.final(x, step)

    def _check_size(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        multiple = self.window_multiple
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise UserError(f"{type(self).__name__}: image of {height}x{width} pixels; its sides must be multiples of "
                            f"{multiple}, at least {multiple}: pad it first")
