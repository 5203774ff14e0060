"""Quantized Linear layers, whole or cut into equal parts by rows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.errors import UserError
from basicsr_quant.quant.layers.table import register_quant_module
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import Recipe


@register_quant_module(nn.Linear)
class QuantLinear(QuantWeighted):
    """y = Q(x) Q(W)^T + Q(b)."""

    @classmethod
    def from_module(cls, module: nn.Linear, recipe: Recipe) -> nn.Module:
        """Return a quantized layer, or a :class:`SplitLinear` if the recipe splits its rows.

        Raises:
            UserError: The input shall be cut at a channel, along an axis that may be that of tokens.
        """
        split = recipe.split_in
        if split is not None and isinstance(split.at, int) and split.activation_axis != -1:
            raise UserError("split_in: the channels of a Linear's input are its last axis; write 'activation_axis: -1'")
        if recipe.split_out > 1:
            return SplitLinear(module, recipe)
        return cls(module.weight, module.bias, recipe)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        x = self.quantized_input(x)
        weight, bias, _ = self.parts()
        return functional.linear(x, weight, bias)


class SplitLinear(nn.Module):
    """A Linear cut into consecutive blocks of rows, each with quantizers of its own; outputs are joined again.

    All parts see the same input, so their activation quantizers are calibrated once and then learn apart.

    Source: 2DQuant specification 1.2 (qkv separation).

    Args:
        module: The fused layer.
        recipe: Of each part; ``split_out`` parts.

    Raises:
        UserError: The rows cannot be cut into equal parts.
    """

    def __init__(self, module: nn.Linear, recipe: Recipe) -> None:
        super().__init__()
        count = recipe.split_out
        if module.out_features % count:
            raise UserError(f"split_out: {count} does not divide the {module.out_features} rows of this Linear")
        weights = module.weight.detach().chunk(count)
        biases = module.bias.detach().chunk(count) if module.bias is not None else [None] * count
        parts = [QuantLinear(nn.Parameter(weight.clone()), None if bias is None else nn.Parameter(bias.clone()), recipe)
                 for weight, bias in zip(weights, biases, strict=True)]
        self.parts = nn.ModuleList(parts)
        first, *others = (part.activation_quantizer for part in parts)
        for other in others:
            if isinstance(first, Quantizer) and isinstance(other, Quantizer):
                other.follow(first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out), parts in order on the last axis."""
        return torch.cat([part(x) for part in self.parts], dim=-1)
