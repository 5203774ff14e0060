"""The heads of the SwinIR family, as parts that run one after the other."""

from __future__ import annotations

from torch import nn

from basicsr_quant.errors import UserError

HEAD_WIDTH = 64


def _shuffle_steps(channels: int, scale: int) -> nn.Sequential:
    """Return convolutions and pixel shuffles that enlarge by 2 (repeatedly) or by 3."""
    factors = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
    if scale < 2 or (scale != 3 and 2 ** len(factors) != scale):
        raise UserError(f"upsampler 'pixelshuffle' knows scale 3 and powers of 2, not {scale}; change upscale")
    parts: list[nn.Module] = []
    for factor in factors:
        parts += [nn.Conv2d(channels, factor**2 * channels, 3, 1, 1), nn.PixelShuffle(factor)]
    return nn.Sequential(*parts)


def make_upsampler(kind: str, channels: int, out_channels: int, scale: int) -> dict[str, nn.Module]:
    """Return the parts of a head by name, in the order in which they run.

    Args:
        kind: ``pixelshuffledirect``, ``pixelshuffle`` or ``nearest+conv``.
        channels: Width of the features that come in.
        out_channels: Channels of the image.
        scale: Factor on height and width.

    Raises:
        UserError: The kind is unknown or cannot do this scale.

    Source: SwinIR (Liang et al., 2021), section 3.1; names are those of its published weights.
    """
    if kind == "pixelshuffledirect":
        shuffle = nn.Sequential(nn.Conv2d(channels, scale**2 * out_channels, 3, 1, 1), nn.PixelShuffle(scale))
        return {"upsample": shuffle}
    before = nn.Sequential(nn.Conv2d(channels, HEAD_WIDTH, 3, 1, 1), nn.LeakyReLU())
    last = nn.Conv2d(HEAD_WIDTH, out_channels, 3, 1, 1)
    if kind == "pixelshuffle":
        return {"conv_before_upsample": before, "upsample": _shuffle_steps(HEAD_WIDTH, scale), "conv_last": last}
    if kind != "nearest+conv":
        known = "'pixelshuffledirect', 'pixelshuffle' or 'nearest+conv'"
        raise UserError(f"SwinIR: upsampler '{kind}' is unknown; choose {known}")
    if scale not in (2, 4):
        raise UserError(f"upsampler 'nearest+conv' knows scales 2 and 4, not {scale}; change upscale")
    head: dict[str, nn.Module] = {"conv_before_upsample": before}
    for step in range(1, scale // 2 + 1):
        head[f"enlarge{step}"] = nn.Upsample(scale_factor=2, mode="nearest")
        head[f"conv_up{step}"] = nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, 3, 1, 1)
        head[f"activation{step}"] = nn.LeakyReLU(0.2)
    head["conv_hr"] = nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, 3, 1, 1)
    head["activation_hr"] = nn.LeakyReLU(0.2)
    head["conv_last"] = last
    return head
