"""Window attention on codes, and a whole SwinIR block around it."""

from __future__ import annotations

import ctypes

import torch
from torch import nn

from basicsr_quant.archs.swinir import SwinBlock
from basicsr_quant.archs.window_attention import WindowAttention
from basicsr_quant.deploy.native.grids import ActivationGrid
from basicsr_quant.deploy.native.library import AttentionLayout, Library, address, best_kernels, float_rows
from basicsr_quant.deploy.native.linear import NativeLinear
from basicsr_quant.quant.quantizer import Quantizer

LARGEST_WINDOW, LARGEST_HEAD, TOKEN_MULTIPLE = 16, 64, 16


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
        self.channels = attention.proj.weight.shape[0]
        features = self.channels // attention.heads
        if window > LARGEST_WINDOW or window**2 % TOKEN_MULTIPLE or features > LARGEST_HEAD:
            raise ValueError(f"native attention takes windows of 4, 8, 12 or 16, heads up to {LARGEST_HEAD} features")
        self.kernels, self.window = kernels or best_kernels(), window
        self._bias = attention._bias(window**2).detach().float().contiguous()
        grids = [ActivationGrid.of(operand).layout for operand in operands]  # type: ignore[arg-type]
        self._layout = AttentionLayout(0, 0, 0, attention.heads, features, window, shift, *grids, attention.scale,
                                       address(self._bias))

    def __call__(self, qkv: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Map (B, h * w, 3 C) to (B, h * w, C) for an image of ``size`` (h, w), multiples of the window."""
        qkv = float_rows(qkv)
        height, width = size
        if qkv.shape[1:] != (height * width, 3 * self.channels) or height % self.window or width % self.window:
            raise ValueError(f"native attention with windows of {self.window} cannot take {tuple(qkv.shape)} at {size}")
        layout = AttentionLayout.from_buffer_copy(self._layout)
        layout.batch, layout.height, layout.width = qkv.shape[0], height, width
        mixed = torch.empty(*qkv.shape[:2], self.channels)
        if self.kernels.window_attention(address(qkv), ctypes.byref(layout), address(mixed), torch.get_num_threads()):
            raise MemoryError("native window attention")
        return mixed


class NativeSwinBlock(nn.Module):
    """A quantized :class:`SwinBlock` in five passes; it takes the place of the block in a SwinIR for inference.

    LayerNorms are done while rows are quantized, windows are read in place, GELU and identities are part of the
    products.

    Args:
        block: Calibrated, every linear layer and operand of it quantized.
        kernels: Those of another level than the processor's best.

    Raises:
        ValueError: A part of it is not quantized in a way that the kernels know.
    """

    def __init__(self, block: SwinBlock, kernels: Library | None = None) -> None:
        super().__init__()
        self.qkv = NativeLinear.of(block.attn.qkv, block.norm1, kernels=kernels)
        self.attention = NativeWindowAttention(block.attn, block.window, block.shift, kernels)
        self.proj = NativeLinear.of(block.attn.proj, kernels=kernels)
        self.fc1 = NativeLinear.of(block.mlp.fc1, block.norm2, gelu=True, kernels=kernels)
        self.fc2 = NativeLinear.of(block.mlp.fc2, kernels=kernels)

    def forward(self, tokens: torch.Tensor, size: tuple[int, int], mask: torch.Tensor | None = None,
                factors: torch.Tensor | None = None) -> torch.Tensor:
        """Transform (B, h * w, C) tokens of an image of ``size``; the mask is known from the size.

        Raises:
            ValueError: There are factors, which belong to training.
        """
        if factors is not None:
            raise ValueError("native blocks are for inference")
        tokens = self.proj(self.attention(self.qkv(tokens), size), tokens)
        return self.fc2(self.fc1(tokens), tokens)
