"""How BI-DiffSR changes resolution and joins features with binary convolutions, and the variants of its ablation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_quant.archs.diffusion_blocks import Fusion, MakeConvolution, Step, convolve


class CPDown(nn.Module):
    """Halves of the channels through two convolutions, their sum unshuffled: C at h x w -> 2C at h/2 x w/2.

    Args:
        channels: C.
        convolution: Makes the convolutions.

    Source: BI-DiffSR section 3.2, consistent-pixel downsample.
    """

    def __init__(self, channels: int, convolution: MakeConvolution) -> None:
        super().__init__()
        self.branch1 = convolution(channels // 2, channels // 2, 3)
        self.branch2 = convolution(channels // 2, channels // 2, 3)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, C, H, W) to (B, 2C, H/2, W/2)."""
        first, second = x.chunk(2, dim=1)
        joined = convolve(self.branch1, first, step.group) + convolve(self.branch2, second, step.group)
        return functional.pixel_unshuffle(joined, 2)


class CPUp(nn.Module):
    """Two convolutions side by side, shuffled: C at h x w -> C/2 at 2h x 2w.

    Args:
        channels: C.
        convolution: Makes the convolutions.

    Source: BI-DiffSR section 3.2, consistent-pixel upsample.
    """

    def __init__(self, channels: int, convolution: MakeConvolution) -> None:
        super().__init__()
        self.branch1 = convolution(channels, channels, 3)
        self.branch2 = convolution(channels, channels, 3)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, C, H, W) to (B, C/2, 2H, 2W)."""
        branches = [convolve(branch, x, step.group) for branch in (self.branch1, self.branch2)]
        return functional.pixel_shuffle(torch.cat(branches, dim=1), 2)


class PlainDown(nn.Module):
    """One convolution that changes the width, and an unshuffle or an average over 2 x 2 pixels.

    Args:
        in_channels: C.
        out_channels: Of the result, at half the size.
        convolution: Makes the convolution.
        pool: Whether to average; else the convolution makes a quarter of the channels, which are unshuffled.

    Source: BI-DiffSR specification 6.2 and 6.4 (baselines; a reconstruction).
    """

    def __init__(self, in_channels: int, out_channels: int, convolution: MakeConvolution, pool: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.conv = convolution(in_channels, out_channels if pool else out_channels // 4, 3)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H/2, W/2)."""
        x = convolve(self.conv, x, step.group)
        return functional.avg_pool2d(x, 2) if self.pool else functional.pixel_unshuffle(x, 2)


class PlainUp(nn.Module):
    """One convolution that makes four times the channels, shuffled.

    Args:
        in_channels: C.
        out_channels: Of the result, at twice the size.
        convolution: Makes the convolution.

    Source: As :class:`PlainDown`.
    """

    def __init__(self, in_channels: int, out_channels: int, convolution: MakeConvolution) -> None:
        super().__init__()
        self.conv = convolution(in_channels, 4 * out_channels, 3)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, 2H, 2W)."""
        return functional.pixel_shuffle(convolve(self.conv, x, step.group), 2)


class CSFusion(Fusion):
    """Channels of both features mixed by parity, then two 1x1 convolutions, summed: twice C -> C.

    With channels counted from 0, the first convolution sees the odd ones of the decoder and the even ones of the
    encoder, the second the others. (The paper's eq. 3 pairs equal parities; the released code and weights do not.)

    Args:
        channels: C of each feature.
        convolution: Makes the convolutions.
        shuffle: Whether to mix; else the convolutions see one feature each (``Split`` of the ablation).

    Source: BI-DiffSR section 3.2, channel-shuffle fusion.
    """

    def __init__(self, channels: int, convolution: MakeConvolution, shuffle: bool = True) -> None:
        super().__init__()
        self.fuse1 = convolution(channels, channels, 1)
        self.fuse2 = convolution(channels, channels, 1)
        self.shuffle = shuffle

    def forward(self, current: Tensor, skip: Tensor, step: Step) -> Tensor:
        """Return the joined feature, (B, C, H, W)."""
        first, second = current, skip
        if self.shuffle:
            first = torch.cat([current[:, 1::2], skip[:, 0::2]], dim=1)
            second = torch.cat([current[:, 0::2], skip[:, 1::2]], dim=1)
        return convolve(self.fuse1, first, step.group) + convolve(self.fuse2, second, step.group)


class AddFusion(Fusion):
    """The sum of both features (``Add`` of the ablation)."""

    def forward(self, current: Tensor, skip: Tensor, step: Step) -> Tensor:
        """Return the sum, (B, C, H, W)."""
        return current + skip
