"""Quantized Conv2d."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.errors import UserError
from basicsr_quant.quant.layers.table import register_quant_module
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.recipe import Recipe


@register_quant_module(nn.Conv2d)
class QuantConv2d(QuantWeighted):
    """y = Q(x) * Q(W) + b; the border is padded with zeros after rounding, as the published code does."""

    def __init__(self, module: nn.Conv2d, recipe: Recipe) -> None:
        super().__init__(module.weight, module.bias, recipe)
        self.stride: Sequence[int] = module.stride
        self.padding: str | Sequence[int] = module.padding
        self.dilation: Sequence[int] = module.dilation
        self.groups = module.groups

    @classmethod
    def from_module(cls, module: nn.Conv2d, recipe: Recipe) -> QuantConv2d:
        """Return the quantized layer.

        Raises:
            UserError: The convolution pads with something other than zeros, or the recipe splits it.
        """
        if module.padding_mode != "zeros":
            raise UserError(f"a Conv2d with padding_mode '{module.padding_mode}' cannot be quantized; "
                            "leave it out by 'none'")
        if recipe.split_out > 1:
            raise UserError("split_out works on Linear layers only")
        return cls(module, recipe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H', W')."""
        return functional.conv2d(self.quantized_input(x), self.quantized_weight(), self.bias, self.stride, self.padding,
                                 self.dilation, self.groups)
