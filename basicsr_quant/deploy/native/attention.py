"""Window attention on codes, and a whole SwinIR block around it."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import nn

from basicsr_quant.archs.swinir import SwinBlock
from basicsr_quant.archs.window_attention import WindowAttention
from basicsr_quant.deploy.native.grids import ActivationGrid
from basicsr_quant.deploy.native.library import (
    AttentionLayout,
    FrameLayout,
    GridLayout,
    Library,
    SwinBlockLayout,
    address,
    best_kernels,
    float_rows,
)
from basicsr_quant.deploy.native.linear import NativeLinear
from basicsr_quant.quant.quantizer import Quantizer

LARGEST_WINDOW, LARGEST_HEAD, TOKEN_MULTIPLE = 16, 64, 16
LOG2E = math.log2(math.e)


class NativeWindowAttention:
    """softmax(Q(q) Q(k)^T + bias) -> Q(map) Q(v), from joint q, k, v in raster order to raster order.

    Args:
        attention: Calibrated, its four operands quantized per tensor.
        window: Side of a window.
        shift: Rows and columns by which windows are displaced.
        kernels: Those of another level than the processor's best.

    Raises:
        ValueError: An operand is not quantized, or the window or the heads are too large.
    """

    def __init__(self, attention: WindowAttention, window: int, shift: int, kernels: Library | None = None) -> None:
        operands = (attention.query, attention.key, attention.value, attention.attention_map)
        if not all(isinstance(operand, Quantizer) for operand in operands):
            raise ValueError("native attention needs query, key, value and attention map quantized")
        features, tokens = round(attention.scale**-2), window**2
        self.channels = attention.heads * features
        if window > LARGEST_WINDOW or tokens % TOKEN_MULTIPLE or features > LARGEST_HEAD:
            raise ValueError(f"native attention takes windows of 4, 8, 12 or 16, heads up to {LARGEST_HEAD} features")
        self.kernels, self.window, self.shift = kernels or best_kernels(), window, shift
        bias = attention._bias(tokens).detach().float().transpose(-1, -2) * LOG2E
        self._bias = bias.contiguous()
        grids = [ActivationGrid.of(operand).layout for operand in operands]  # type: ignore[arg-type]
        self.layout = AttentionLayout(attention.heads, features, tokens, (GridLayout * 3)(*grids[:3]), grids[3],
                                      attention.scale, address(self._bias))

    def frame(self, tokens: torch.Tensor, size: tuple[int, int], channels: int) -> FrameLayout:
        """Return how (B, h * w, channels) tokens of images of ``size`` (h, w) are cut into windows.

        Raises:
            ValueError: The tokens have another shape, or the sides are no multiples of the window.
        """
        height, width = size
        if tokens.shape[1:] != (height * width, channels) or height % self.window or width % self.window:
            raise ValueError(f"native attention with windows of {self.window} cannot take {tuple(tokens.shape)} at "
                             f"{size}")
        return FrameLayout(tokens.shape[0], height, width, self.window, self.shift)

    def __call__(self, qkv: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Map (B, h * w, 3 C) to (B, h * w, C) for an image of ``size`` (h, w), multiples of the window."""
        qkv = float_rows(qkv)
        frame = self.frame(qkv, size, 3 * self.channels)
        mixed = torch.empty(*qkv.shape[:2], self.channels)
        if self.kernels.window_attention(address(qkv), ctypes.byref(frame), ctypes.byref(self.layout), address(mixed),
                                         torch.get_num_threads()):
            raise MemoryError("native window attention")
        return mixed


class NativeSwinBlock(nn.Module):
    """A quantized :class:`SwinBlock` in one pass; it takes the place of the block in a SwinIR for inference.

    A window is done from its tokens to its result before the next one begins: numbers between the layers exist only
    as codes, LayerNorms are done while rows are quantized, GELU and identities are part of the products.

    Args:
        block: Frozen, every linear layer and operand of it quantized.
        kernels: Those of another level than the processor's best.

    Raises:
        ValueError: A part of it is not quantized in a way that the kernels know.
    """

    def __init__(self, block: SwinBlock, kernels: Library | None = None) -> None:
        super().__init__()
        self._layers = (NativeLinear.of(block.attn.qkv, block.norm1, kernels=kernels),
                        NativeLinear.of(block.attn.proj, kernels=kernels),
                        NativeLinear.of(block.mlp.fc1, block.norm2, gelu=True, kernels=kernels),
                        NativeLinear.of(block.mlp.fc2, kernels=kernels))
        if [layer.count for layer in self._layers] != [3, 1, 1, 1]:
            raise ValueError("native blocks need the joint layer of q, k and v cut into three, and the others whole")
        self._attention = NativeWindowAttention(block.attn, block.window, block.shift, kernels)
        self._layout = SwinBlockLayout(*(ctypes.pointer(layer.layout) for layer in self._layers),
                                       ctypes.pointer(self._attention.layout))

    def forward(self, tokens: torch.Tensor, size: tuple[int, int], mask: torch.Tensor | None = None,
                factors: torch.Tensor | None = None) -> torch.Tensor:
        """Transform (B, h * w, C) tokens of an image of ``size``; the mask is known from the size.

        Raises:
            ValueError: There are factors, which belong to training, or the size does not suit the window.
        """
        if factors is not None:
            raise ValueError("native blocks are for inference")
        tokens = float_rows(tokens)
        frame, result = self._attention.frame(tokens, size, self._attention.channels), torch.empty_like(tokens)
        if self._attention.kernels.swin_block(address(tokens), ctypes.byref(frame), ctypes.byref(self._layout),
                                              address(result), torch.get_num_threads()):
            raise MemoryError("native block")
        return result
