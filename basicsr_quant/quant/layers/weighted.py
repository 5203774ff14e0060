"""What layers with a weight have in common: where their quantizers are and which tensor each one rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import Recipe


class QuantWeighted(nn.Module):
    """A layer with weight and bias that rounds its input and its weight.

    The weight is rounded at each forward while it may change, and once in :func:`frozen_weights`.

    Args:
        weight: Parameter, output channels first.
        bias: Parameter or None; never quantized.
        recipe: ``weight`` and ``activation`` parts; None leaves a tensor alone.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, recipe: Recipe) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.weight_quantizer = Quantizer(recipe.weight, weight.shape[0], weight.dim()) if recipe.weight else None
        self.activation_quantizer = Quantizer(recipe.activation) if recipe.activation else None
        for quantizer in (self.weight_quantizer, self.activation_quantizer):
            if quantizer is not None:
                quantizer.to(weight.device, weight.dtype)
        self.rounded_weight: torch.Tensor | None = None

    def quantized_weight(self) -> torch.Tensor:
        """Return the rounded weight."""
        if self.rounded_weight is not None:
            return self.rounded_weight
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rounded input."""
        return x if self.activation_quantizer is None else self.activation_quantizer(x)


def weighted_layers(model: nn.Module) -> Iterator[tuple[str, QuantWeighted]]:
    """Yield the names and modules of all quantized layers with a weight."""
    for name, module in model.named_modules():
        if isinstance(module, QuantWeighted):
            yield name, module


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Context in which every weight is rounded once, for inference with weights that do not change."""
    layers = [layer for _, layer in weighted_layers(model)]
    with torch.no_grad():
        for layer in layers:
            layer.rounded_weight = layer.quantized_weight().detach()
    try:
        yield
    finally:
        for layer in layers:
            layer.rounded_weight = None
