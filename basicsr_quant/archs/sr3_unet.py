"""SR3UNet: the full-precision noise-prediction network that BI-DiffSR is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from basicsr_quant.archs.diffusion_blocks import Fusion, Step, full_precision
from basicsr_quant.archs.diffusion_unet import DiffusionUNet


class StridedDown(nn.Module):
    """A 3x3 convolution of stride 2, (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Halve the size."""
        return self.conv(x)


class NearestUp(nn.Module):
    """Every pixel twice in both directions, then a 3x3 convolution, (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resize = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv = full_precision(channels, channels, 3)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Double the size."""
        return self.conv(self.resize(x))


class SR3UNet(DiffusionUNet):
    """The UNet of SR3, conditioned on integer timesteps.

    Args:
        in_channel: Channels of condition and image together.
        out_channel: Channels of the noise.
        inner_channel: Width at full size.
        norm_groups: Groups of all normalizations.
        channel_mults: Width of every level over ``inner_channel``.
        attn_res: Levels, by their size in an image of ``image_size``, whose residual blocks have attention; the
            bottleneck's first always has.
        res_blocks: Residual blocks of each level of the encoder; the decoder has one more.
        dropout: In the second half of every residual block.
        image_size: Nominal size of the first level.
        total_step: Number of timesteps T.

    Raises:
        UserError: An option has no meaning for this network.

    Source: SR3 (Saharia et al., 2021) as its public PyTorch implementation has it; BI-DiffSR specification 6.1.
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
        total_step: int = 2000,
    ) -> None:
        super().__init__(in_channel, out_channel, inner_channel, norm_groups, channel_mults, dropout, total_step,
                         swish_time=False)
        attention = [image_size // 2**level in attn_res for level in range(len(self.widths))]
        downs, skips, current = [self.first_convolution()], [inner_channel], inner_channel
        for level, width in enumerate(self.widths):
            for _ in range(res_blocks):
                downs.append(self.res_block(current, width, full_precision, attention[level]))
                skips.append(width)
                current = width
            if level + 1 < len(self.widths):
                downs.append(StridedDown(width))
                skips.append(width)
        mid = [self.res_block(current, current, full_precision, attention=True),
               self.res_block(current, current, full_precision)]
        ups: list[nn.Module] = []
        for level, width in reversed(list(enumerate(self.widths))):
            for _ in range(res_blocks + 1):
                ups += [Fusion(), self.res_block(current + skips.pop(), width, full_precision, attention[level])]
                current = width
            if level:
                ups.append(NearestUp(width))
        self.assemble(downs, mid, ups)
