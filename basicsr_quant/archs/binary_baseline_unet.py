"""The network that the binarization baselines of BI-DiffSR's Table 2 run in: a reconstruction, none is published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from basicsr_quant.archs.bi_diffsr_blocks import PlainDown, PlainUp
from basicsr_quant.archs.diffusion_blocks import ConvFusion, Fusion, MakeConvolution, full_precision
from basicsr_quant.archs.diffusion_unet import DiffusionUNet
from basicsr_quant.quant.binary.binarizers import make_binarizer
from basicsr_quant.quant.binary.sign import SignZero
from basicsr_quant.quant.binary.unit import Binarizer, BinaryUnit


class BinaryBaselineUNet(DiffusionUNet):
    """The UNet of BI-DiffSR without its own modules, around the unit of any binarization method.

    A reconstruction: its parameters and operations are close to those published, its topology is not known.

    Args:
        binarizer: Name in BINARIZERS, or ``{type: name, argument: value}``.
        in_channel: Channels of condition and image together.
        out_channel: Channels of the noise.
        inner_channel: Width at full size.
        norm_groups: Groups of all normalizations.
        channel_mults: Width of every level over ``inner_channel``, each twice the one before.
        res_blocks: Residual blocks of each level of the encoder; the decoder has one more.
        dropout: In the second half of every residual block.
        image_size: Nominal size of the first level.
        fp_res: Levels of the decoder in full precision, by their nominal size.
        total_step: Number of timesteps T.
        down: ``pool`` (convolution to twice the width, then the mean of 2 x 2 pixels) or ``unshuffle`` (to half the
            width, then a pixel unshuffle; for BBCU).
        sign_zero: What sign(0) is.

    Raises:
        UserError: An option has no meaning for this network.

    Source: BI-DiffSR specification 6.2, variant P.
    """

    def __init__(
        self,
        binarizer: Binarizer | str | dict[str, Any],
        in_channel: int = 6,
        out_channel: int = 3,
        inner_channel: int = 64,
        norm_groups: int = 16,
        channel_mults: Sequence[int] = (1, 2, 4, 8),
        res_blocks: int = 2,
        dropout: float = 0.2,
        image_size: int = 256,
        fp_res: Sequence[int] = (256, 128),
        total_step: int = 2000,
        down: Literal["pool", "unshuffle"] = "pool",
        sign_zero: SignZero = "zero",
    ) -> None:
        super().__init__(in_channel, out_channel, inner_channel, norm_groups, channel_mults, dropout, total_step)
        self.refuse_widths(channel_mults)
        method = make_binarizer(binarizer, sign_zero)

        def binary(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
            return BinaryUnit(in_channels, out_channels, kernel_size, method)

        downs, skips = [self.first_convolution()], [inner_channel]
        for level, width in enumerate(self.widths):
            for _ in range(res_blocks):
                downs.append(self.res_block(width, width, binary))
                skips.append(width)
            if level + 1 < len(self.widths):
                downs.append(PlainDown(width, 2 * width, binary, pool=down == "pool"))
                skips.append(2 * width)
        current = self.widths[-1]
        mid = [self.res_block(current, current, binary, attention=True), self.res_block(current, current, binary)]
        ups: list[nn.Module] = []
        for level, width in reversed(list(enumerate(self.widths))):
            for _ in range(res_blocks + 1):
                ups += self._joined(current + skips.pop(), width, binary, full=image_size // 2**level in fp_res)
                current = width
            if level:
                ups.append(PlainUp(width, width, binary))
        self.assemble(downs, mid, ups)

    def _joined(self, joined: int, width: int, binary: MakeConvolution, full: bool) -> list[nn.Module]:
        """Return the modules that join a skip and transform the result to ``width`` channels."""
        if full:
            return [ConvFusion(joined, width, full_precision), self.res_block(width, width, full_precision)]
        return [Fusion(), self.res_block(joined, width, binary)]
