"""BIDiffSRUNet: the binary noise-prediction network of BI-DiffSR, and the networks of its ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from basicsr_quant.archs.bi_diffsr_blocks import AddFusion, CPDown, CPUp, CSFusion, PlainDown, PlainUp
from basicsr_quant.archs.diffusion_blocks import ConvFusion, Fusion, MakeConvolution, full_precision
from basicsr_quant.archs.diffusion_unet import DiffusionUNet, GroupChoice
from basicsr_quant.quant.binary.binarizers import bi_conv, make_binarizer
from basicsr_quant.quant.binary.sign import SignZero
from basicsr_quant.quant.binary.unit import Binarizer, BinaryUnit


class BIDiffSRUNet(DiffusionUNet):
    """UNet with binary convolutions; the decoder's shallow levels, attention, first and last layers stay float.

    ``image_size``, ``fp_res`` and ``attn_res`` name levels by their size in an image of ``image_size``; the images
    themselves may have any size.

    Args:
        in_channel: Channels of condition and image together.
        out_channel: Channels of the noise.
        inner_channel: Width at full size.
        norm_groups: Groups of all normalizations.
        channel_mults: Width of every level over ``inner_channel``, each twice the one before.
        attn_res: Levels whose residual blocks have attention; the bottleneck's first always has.
        res_blocks: Residual blocks of each level of the encoder; the decoder has one more.
        dropout: In the second half of every residual block.
        image_size: Nominal size of the first level.
        fp_res: Levels of the decoder in full precision.
        total_step: Number of timesteps T.
        dynamic_group: Number of timestep groups K.
        sign_zero: What sign(0) is; ``zero`` is the released code's, ``plus_one`` the paper's.
        group_choice: See :class:`basicsr_quant.archs.diffusion_unet.DiffusionUNet`.
        timestep_aware: Which parameters are per group: ``both``, those before the sign (``in``, TaR), those behind the
            convolution (``out``, TaA), ``none``.
        binarizer: Name in BINARIZERS, or ``{type: name, argument: value}``; None for BI-DiffSR's own.
        resampling: ``cp`` (CP-Down, CP-Up) or ``plain`` (one convolution and a pixel shuffle).
        fusion: ``cs`` (CS-Fusion), ``split`` (the same without shuffle), ``concat`` (one 1x1 convolution), ``add``.

    Raises:
        UserError: An option has no meaning for this network.

    Source: BI-DiffSR (Chen et al., 2024), section 3; the ablation's variants (its table 1) are reconstructions.
    """

    def __init__(
        self,
        in_channel: int = 6,
        out_channel: int = 3,
        inner_channel: int = 64,
        norm_groups: int = 16,
        channel_mults: Sequence[int] = (1, 2, 4, 8),
        attn_res: Sequence[int] = (),
        res_blocks: int = 2,
        dropout: float = 0.2,
        image_size: int = 256,
        fp_res: Sequence[int] = (256, 128),
        total_step: int = 2000,
        dynamic_group: int = 5,
        sign_zero: SignZero = "zero",
        group_choice: GroupChoice = "first_sample",
        timestep_aware: Literal["both", "in", "out", "none"] = "both",
        binarizer: Binarizer | str | dict[str, Any] | None = None,
        resampling: Literal["cp", "plain"] = "cp",
        fusion: Literal["cs", "split", "concat", "add"] = "cs",
    ) -> None:
        super().__init__(in_channel, out_channel, inner_channel, norm_groups, channel_mults, dropout, total_step,
                         dynamic_group, group_choice)
        self.refuse_widths(channel_mults)
        self.resampling, self.fusion = resampling, fusion
        method = bi_conv(sign_zero) if binarizer is None else make_binarizer(binarizer, sign_zero)
        shift_groups = dynamic_group if timestep_aware in ("both", "in") else 1
        activation_groups = dynamic_group if timestep_aware in ("both", "out") else 1

        def binary(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
            return BinaryUnit(in_channels, out_channels, kernel_size, method, shift_groups, activation_groups)

        sizes = [image_size // 2**level for level in range(len(self.widths))]
        attention, full = [size in attn_res for size in sizes], [size in fp_res for size in sizes]
        downs = self._encoder(binary, res_blocks, attention)
        deepest = self.widths[-1]
        mid = [self.res_block(deepest, deepest, binary, attention=True), self.res_block(deepest, deepest, binary)]
        self.assemble(downs, mid, self._decoder(binary, res_blocks, attention, full))

    def _encoder(self, binary: MakeConvolution, res_blocks: int, attention: list[bool]) -> list[nn.Module]:
        stages = [self.first_convolution()]
        for level, width in enumerate(self.widths):
            stages += [self.res_block(width, width, binary, attention[level]) for _ in range(res_blocks)]
            if level + 1 < len(self.widths):
                stages.append(CPDown(width, binary) if self.resampling == "cp" else PlainDown(width, 2 * width, binary))
        return stages

    def _decoder(self, binary: MakeConvolution, res_blocks: int, attention: list[bool],
                 full: list[bool]) -> list[nn.Module]:
        stages: list[nn.Module] = []
        for level, width in reversed(list(enumerate(self.widths))):
            convolution = full_precision if full[level] else binary
            for _ in range(res_blocks + 1):
                stages.append(self._fusion(width, convolution))
                stages.append(self.res_block(width, width, convolution, attention[level]))
            if level:
                stages.append(CPUp(width, binary) if self.resampling == "cp" else PlainUp(width, width // 2, binary))
        return stages

    def _fusion(self, width: int, convolution: MakeConvolution) -> Fusion:
        if self.fusion == "add":
            return AddFusion()
        if self.fusion == "concat":
            return ConvFusion(2 * width, width, convolution)
        return CSFusion(width, convolution, shuffle=self.fusion == "cs")
