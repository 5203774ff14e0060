"""Attention inside (shifted) windows with a learned bias for every relative position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from basicsr_quant.quant.operand import Operand

MASKED = -100.0


def partition(tokens: Tensor, size: tuple[int, int], window: int, shift: int) -> Tensor:
    """Cut raster-ordered tokens into windows.

    Args:
        tokens: (B, h * w, C).
        size: (h, w), multiples of ``window``.
        window: Side of a window.
        shift: Rows and columns by which the image is rolled up and left before it is cut.

    Returns:
        (B * windows, window * window, C).
    """
    height, width = size
    image = tokens.view(-1, height, width, tokens.shape[-1])
    if shift:
        image = torch.roll(image, (-shift, -shift), (1, 2))
    image = image.view(-1, height // window, window, width // window, window, tokens.shape[-1])
    return image.transpose(2, 3).reshape(-1, window * window, tokens.shape[-1])


def merge(windows: Tensor, size: tuple[int, int], window: int, shift: int) -> Tensor:
    """Undo :func:`partition`: (B * windows, window * window, C) -> (B, h * w, C)."""
    height, width = size
    image = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    image = image.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])
    if shift:
        image = torch.roll(image, (shift, shift), (1, 2))
    return image.view(-1, height * width, windows.shape[-1])


def shift_mask(size: tuple[int, int], window: int, shift: int, like: Tensor) -> Tensor:
    """Return what is added to the logits so that tokens rolled in from the other side are not attended to.

    Args:
        size: (h, w), multiples of ``window``.
        window: Side of a window.
        shift: Rows and columns by which the image was rolled.
        like: Tensor that gives device and dtype.

    Returns:
        (windows, window * window, window * window), 0 within a region and -100 across.

    Source: Swin Transformer, section 3.2; made from comparisons alone, so nothing waits for the device.
    """
    regions = []
    for length in size:
        place = torch.arange(length, device=like.device)
        regions.append((place >= length - window).int() + (place >= length - shift).int())
    region = (regions[0][:, None] * 3 + regions[1][None, :]).view(1, -1, 1)
    region = partition(region, size, window, 0).squeeze(-1)
    return (region[:, :, None] != region[:, None, :]).to(like.dtype) * MASKED


def relative_position_index(window: int) -> Tensor:
    """Return (window^2, window^2) int64: the row of the bias table for every pair of tokens of a window."""
    place = torch.arange(window)
    offset = place[:, None] - place[None, :] + window - 1
    index = offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]
    return index.reshape(window * window, window * window)


class WindowAttention(nn.Module):
    """Multi-head attention within windows.

    Query (after bias and scale), key, value and the softmax map pass through :class:`Operand` modules, so that a plan
    can quantize the two products. ``products`` names the operands of each, left and right, in order of execution.

    Args:
        channels: Width C of a token.
        window: Side of a window.
        heads: Number of heads; divides C.
        qkv_bias: Whether the joint q, k, v projection has a bias.

    Source: Swin Transformer, eq. 4.
    """

    relative_position_index: Tensor

    products = (("query", "key"), ("value", "attention_map"))

    def __init__(self, channels: int, window: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.query, self.key, self.value, self.attention_map = Operand(), Operand(), Operand(), Operand()
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within windows.

        The value is laid out (…, d, N) in memory and seen as (…, N, d): the product with it is then up to twice as fast
        on a CPU.

        Args:
            windows: (B * nW, N, C), the windows of an image next to each other.
            mask: (nW, N, N) added to the logits, or None.

        Returns:
            (B * nW, N, C).
        """
        count, tokens, channels = windows.shape
        qkv = self.qkv(windows).view(count, tokens, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = self.query(query.contiguous() * self.scale), self.key(key.contiguous())
        value = self.value(value.transpose(-2, -1).contiguous().transpose(-2, -1))
        offset = self._bias(tokens)
        if mask is not None:
            offset = offset + mask[:, None]
            query, key = query.unflatten(0, (-1, len(mask))), key.unflatten(0, (-1, len(mask)))
        logits = query @ key.transpose(-2, -1)
        logits += offset.to(logits.dtype)
        attention = self.attention_map(logits.softmax(-1).view(count, self.heads, tokens, tokens))
        mixed = attention @ value
        return self.proj(mixed.transpose(1, 2).reshape(count, tokens, channels))

    def _bias(self, tokens: int) -> Tensor:
        """Look up the (heads, N, N) bias of all pairs."""
        rows = self.relative_position_bias_table.index_select(0, self.relative_position_index.view(-1))
        return rows.t().reshape(self.heads, tokens, tokens)
