"""``native_bf16``: ``native``, and what is not quantized of the convolutions in bfloat16."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from basicsr_quant.deploy.freeze import replace_module
from basicsr_quant.deploy.runtimes.native import Native

logger = logging.getLogger("basicsr_quant")


class NativeBf16:
    """Faster than ``native`` where much of a network is in full precision, and not exact there."""

    def missing(self) -> str | None:
        """Return what is missing."""
        return Native().missing() or (None if multiplies_bf16() else "this CPU does not multiply bfloat16")

    def attach(self, network: nn.Module) -> nn.Module:
        """Replace what ``native`` replaces, and plain convolutions."""
        network = Native().attach(network)
        convolutions = [(name, module) for name, module in network.named_modules() if type(module) is nn.Conv2d]
        for name, module in convolutions:
            replace_module(network, name, Bf16Conv2d(module))
        logger.info("backend 'native_bf16' computes %d convolutions in bfloat16", len(convolutions))
        return network


class Bf16Conv2d(nn.Conv2d):
    """A Conv2d in bfloat16 between float32 tensors; its parameters stay in float32.

    Args:
        layer: What it replaces.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        geometry: tuple[Any, Any, Any, Any] = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        super().__init__(layer.in_channels, layer.out_channels, *geometry, layer.groups, layer.bias is not None,
                         layer.padding_mode, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._rounded = [None if value is None else value.detach().bfloat16() for value in (layer.weight, layer.bias)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H', W')."""
        weight, bias = self._rounded
        assert weight is not None
        return self._conv_forward(x.bfloat16(), weight, bias).to(x.dtype)


def multiplies_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
