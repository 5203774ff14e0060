"""SwinIR for super-resolution: residual groups of (shifted) window transformer blocks between convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from basicsr_quant.archs.padding import crop_to, pad_to_multiple
from basicsr_quant.archs.upsamplers import make_upsampler
from basicsr_quant.archs.window_attention import WindowAttention, merge, partition, shift_mask
from basicsr_quant.errors import UserError

RGB_MEAN = (0.4488, 0.4371, 0.4040)


def _residual(tokens: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    """Add a branch, times a factor (B,) for every sample if stochastic depth is on."""
    if factor is None:
        return tokens + branch
    return tokens + branch * factor.to(branch.dtype)[:, None, None]


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them, (…, channels) -> (…, channels)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform every token on its own."""
        return self.fc2(self.act(self.fc1(tokens)))


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a LayerNorm and beside an identity.

    Args:
        channels: Width C of a token.
        window: Side of a window.
        shift: Rows and columns by which the windows are displaced.
        heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLP over C.
        qkv_bias: Whether the q, k, v projection has a bias.

    Source: Swin Transformer, eq. 3.
    """

    def __init__(self, channels: int, window: int, shift: int, heads: int, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, tokens: Tensor, size: tuple[int, int], mask: Tensor | None, factors: Tensor | None) -> Tensor:
        """Transform (B, h * w, C) tokens of an image of ``size`` (h, w).

        ``factors`` (B, 2) scales the attention and the MLP branch of every sample; None leaves them as they are.
        """
        attention_factor, mlp_factor = (None, None) if factors is None else factors.unbind(1)
        windows = partition(self.norm1(tokens), size, self.window, self.shift)
        windows = self.attn(windows, mask if self.shift else None)
        tokens = _residual(tokens, merge(windows, size, self.window, self.shift), attention_factor)
        return _residual(tokens, self.mlp(self.norm2(tokens)), mlp_factor)


class BlockGroup(nn.Module):
    """A chain of :class:`SwinBlock`, every second one with shifted windows."""

    def __init__(self, blocks: Sequence[SwinBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, tokens: Tensor, size: tuple[int, int], mask: Tensor | None, factors: Sequence[Tensor | None]
    ) -> Tensor:
        """Transform (B, h * w, C) tokens; ``factors`` holds one entry for every block."""
        for block, factor in zip(self.blocks, factors, strict=True):
            tokens = block(tokens, size, mask, factor)
        return tokens


class ResidualGroup(nn.Module):
    """A :class:`BlockGroup` and a convolution beside an identity (RSTB)."""

    def __init__(self, blocks: Sequence[SwinBlock], convolution: nn.Module) -> None:
        super().__init__()
        self.residual_group = BlockGroup(blocks)
        self.conv = convolution

    def forward(
        self, tokens: Tensor, size: tuple[int, int], mask: Tensor | None, factors: Sequence[Tensor | None]
    ) -> Tensor:
        """Transform (B, h * w, C) tokens of an image of ``size`` (h, w)."""
        image = to_image(self.residual_group(tokens, size, mask, factors), size)
        return tokens + to_tokens(self.conv(image))


def to_image(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """View (B, h * w, C) tokens as a (B, C, h, w) image in channels-last memory."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def to_tokens(image: Tensor) -> Tensor:
    """View a (B, C, h, w) image as (B, h * w, C) tokens; no copy if its memory is channels-last."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


class _Norm(nn.Module):
    """LayerNorm under the name ``norm``, as the published weights have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)


def _body_convolution(channels: int, connection: str) -> nn.Module:
    """Return the convolution at the end of a group: one of 3x3, or a bottleneck of three."""
    if connection == "1conv":
        return nn.Conv2d(channels, channels, 3, 1, 1)
    if connection == "3conv":
        narrow = channels // 4
        return nn.Sequential(nn.Conv2d(channels, narrow, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(narrow, narrow, 1),
                             nn.LeakyReLU(0.2), nn.Conv2d(narrow, channels, 3, 1, 1))
    raise UserError(f"SwinIR: resi_connection '{connection}' is unknown; choose '1conv' or '3conv'")


class SwinIR(nn.Module):
    """SwinIR with any of its super-resolution heads.

    Args:
        upscale: Scale factor s.
        in_chans: Image channels; 3 means RGB, whose mean is subtracted.
        img_size: LR side the published weights were made for; matters only if it is no larger than a window.
        window_size: Side of an attention window.
        img_range: Factor on the input.
        depths: Blocks in each group.
        embed_dim: Channels of the body.
        num_heads: Attention heads in each group.
        mlp_ratio: Hidden width of the MLPs over ``embed_dim``.
        qkv_bias: Whether q, k, v projections have a bias.
        drop_path_rate: Probability of leaving out the last block's branches in training; earlier blocks linearly less.
        upsampler: ``pixelshuffledirect`` (light), ``pixelshuffle`` (classical), ``nearest+conv``
            (real-world, s = 2 or 4).
        resi_connection: ``1conv`` or ``3conv``, the convolution at the end of a group.

    Raises:
        UserError: An option has no meaning for this network.

    Source: SwinIR (Liang et al., 2021); module names are those of its published weights.
    """

    mean: Tensor

    def __init__(
        self,
        upscale: int,
        in_chans: int = 3,
        img_size: int = 64,
        window_size: int = 8,
        img_range: float = 1.0,
        depths: Sequence[int] = (6, 6, 6, 6),
        embed_dim: int = 60,
        num_heads: Sequence[int] = (6, 6, 6, 6),
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        upsampler: str = "pixelshuffledirect",
        resi_connection: str = "1conv",
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise UserError(f"SwinIR: depths has {len(depths)} entries, num_heads {len(num_heads)}; give one of each "
                            "per group")
        if any(embed_dim % heads for heads in num_heads):
            raise UserError(f"SwinIR: embed_dim {embed_dim} is not divisible by num_heads {list(num_heads)}; change "
                            "one of them")
        self.upscale, self.img_range, self.depths = upscale, img_range, tuple(depths)
        self.window_multiple = window = min(window_size, img_size)
        self.shift = window // 2 if img_size > window_size else 0
        count = sum(depths)
        self.drop_path_rates = tuple(drop_path_rate * index / max(count - 1, 1) for index in range(count))
        mean = RGB_MEAN if in_chans == 3 else (0.0,) * in_chans
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, 1, 1)
        self.patch_embed = _Norm(embed_dim)
        self.layers = nn.ModuleList(
            ResidualGroup(
                [SwinBlock(embed_dim, window, shift, heads, mlp_ratio, qkv_bias) for shift in self._shifts(depth)],
                _body_convolution(embed_dim, resi_connection),
            )
            for depth, heads in zip(depths, num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _body_convolution(embed_dim, resi_connection)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        head = make_upsampler(upsampler, embed_dim, in_chans, upscale)
        self.head = tuple(head)
        for name, part in head.items():
            self.add_module(name, part)

    def _shifts(self, depth: int) -> list[int]:
        """Return the displacement of the windows of every block of a group."""
        return [index % 2 * self.shift for index in range(depth)]

    def training_draws(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Return the U[0, 1) draws that a training step needs: keyword argument of forward -> shape for one sample."""
        return {"drop_path_draws": (2 * sum(self.depths),)} if any(self.drop_path_rates) else {}

    def forward(self, image: Tensor, drop_path_draws: Tensor | None = None) -> Tensor:
        """Upscale images of any size.

        Args:
            image: (B, C, h, w) in [0, 1].
            drop_path_draws: (B, 2 * blocks) in [0, 1): for every block the draw of its attention branch, then that of
                its MLP branch. Used in training mode only; None draws from torch's generator.

        Returns:
            (B, C, s * h, s * w), not clamped.
        """
        height, width = image.shape[-2:]
        image = (pad_to_multiple(image, self.window_multiple) - self.mean) * self.img_range
        shallow = self.conv_first(image.contiguous(memory_format=torch.channels_last))
        deep = self.conv_after_body(self._body(shallow, drop_path_draws)) + shallow
        output = self._upsample(deep) / self.img_range + self.mean
        return crop_to(output, self.upscale * height, self.upscale * width)

    def _body(self, shallow: Tensor, draws: Tensor | None) -> Tensor:
        """Run the transformer groups on (B, embed_dim, h, w) features."""
        size = (shallow.shape[2], shallow.shape[3])
        tokens = self.patch_embed(to_tokens(shallow))
        mask = shift_mask(size, self.window_multiple, self.shift, tokens) if self.shift else None
        factors = self._branch_factors(tokens, draws)
        first = 0
        for layer, depth in zip(self.layers, self.depths, strict=True):
            tokens = layer(tokens, size, mask, factors[first:first + depth])
            first += depth
        return to_image(self.norm(tokens), size)

    def _branch_factors(self, tokens: Tensor, draws: Tensor | None) -> list[Tensor | None]:
        """Return (B, 2) for every block: 0 for a branch left out, 1 / (1 - p) for a kept one; None where p is 0."""
        if not self.training or not any(self.drop_path_rates):
            return [None] * len(self.drop_path_rates)
        if draws is None:
            draws = torch.rand(tokens.shape[0], 2 * len(self.drop_path_rates), device=tokens.device)
        return [
            (draws[:, 2 * index:2 * index + 2] + (1 - rate)).floor() / (1 - rate) if rate else None
            for index, rate in enumerate(self.drop_path_rates)
        ]

    def _upsample(self, features: Tensor) -> Tensor:
        """Run the parts of the head in order."""
        for name in self.head:
            features = self.get_submodule(name)(features)
        return features
