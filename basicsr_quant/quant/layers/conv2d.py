"""Quantized Conv2d."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.errors import UserError
from basicsr_quant.quant.layers.table import register_quant_module
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.recipe import Recipe


@register_quant_module(nn.Conv2d)
class QuantConv2d(QuantWeighted):
    """y = Q(x) * Q(W) + Q(b); the border is padded with zeros after rounding, unless ``let:padding`` says otherwise."""

    channel_axis = 1

    def __init__(self, module: nn.Conv2d, recipe: Recipe) -> None:
        super().__init__(module.weight, module.bias, recipe, module.groups)
        self.stride: Sequence[int] = module.stride
        self.dilation: Sequence[int] = module.dilation
        self.groups = module.groups
        self.pads = _pads(module)
        self.pads_input = recipe.let is not None and recipe.let.padding == "transformed_zero" and any(self.pads)
        self.padding: str | Sequence[int] = (0, 0)
        if not self.pads_input:
            self.padding = module.padding

    @classmethod
    def from_module(cls, module: nn.Conv2d, recipe: Recipe) -> QuantConv2d:
        """Return the quantized layer.

        Raises:
            UserError: The convolution pads with something other than zeros, or the recipe splits it in a way that is
                for Linear layers.
        """
        if module.padding_mode != "zeros":
            raise UserError(f"a Conv2d with padding_mode '{module.padding_mode}' cannot be quantized; "
                            "leave it out by 'none'")
        if recipe.split_out > 1:
            raise UserError("split_out works on Linear layers only")
        if recipe.split_in is not None and recipe.split_in.activation_axis != 1:
            raise UserError("split_in: axis -1 of a Conv2d's input is its width; write 'activation_axis: 1'")
        if recipe.let is not None:
            recipe = replace(recipe, let=replace(recipe.let, offset_sign="minus"))
        return cls(module, recipe)

    def has_border(self) -> bool:
        """Whether zeros are padded behind the transformation."""
        return any(self.pads) and not self.pads_input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H', W')."""
        if self.pads_input:
            x = functional.pad(x, self.pads)
        x = self.quantized_input(x)
        weight, bias, border = self.parts()
        y = functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y if border is None else y + border_term(self, x, border)


class Geometry(Protocol):
    """How a convolution moves over its input."""

    stride: Sequence[int]
    padding: str | Sequence[int]
    dilation: Sequence[int]


def border_term(layer: Geometry, x: torch.Tensor, border: torch.Tensor) -> torch.Tensor:
    """Return the transformation's term W o, (1, O, H', W'), which is smaller where zeros are padded.

    Args:
        layer: The convolution.
        x: An input of it; only size, dtype and device matter.
        border: Kernel (O, 1, kh, kw).
    """
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    return functional.conv2d(inside, border, None, layer.stride, layer.padding, layer.dilation)


def _pads(module: nn.Conv2d) -> list[int]:
    """Return the padding of a convolution as left, right, top, bottom."""
    if module.padding == "valid":
        return [0, 0, 0, 0]
    pads = []
    for axis in (1, 0):
        if isinstance(module.padding, str):
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [module.padding[axis]] * 2
    return pads
