"""What layers with a weight have in common: where their quantizers are and which tensor each one rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.layers.parametrization import WeightParametrization
from basicsr_quant.quant.let import Transformation
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import Recipe
from basicsr_quant.quant.split_quantizer import make_quantizer, pieces


class Parts(NamedTuple):
    """What a layer multiplies and adds: weight (O, I, ...), bias (O,), and a kernel (O, 1, kh, kw) for ones inside."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    border: torch.Tensor | None


class QuantWeighted(nn.Module):
    """A layer with weight and bias: y = Q((x - o) / s) Q(W s) + Q(b) + W o, s = 1 and o = 0 without transformation.

    Weight and bias are rounded at each forward while they may change, and once in :func:`frozen_weights`. While
    something else than the weight is learned, ``parametrization`` says how the rounded weight comes from it.

    Args:
        weight: Parameter, output channels first.
        bias: Parameter or None.
        recipe: ``weight``, ``activation`` and ``bias`` parts, None leaves a tensor alone; ``split_in``, ``let``.
        groups: Of a convolution.

    Raises:
        UserError: ``split_in`` cuts nothing off, or works on groups.
    """

    channel_axis = -1

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, recipe: Recipe, groups: int = 1) -> None:
        super().__init__()
        split, channels = recipe.split_in, weight.shape[1] * groups
        if split is not None:
            _check_split(split.at, channels, groups)
        self.weight = weight
        self.owns_weight = False
        self.bias = bias
        self.weight_quantizer = make_quantizer(recipe.weight, split, 1, weight.shape[0], weight.dim())
        self.activation_quantizer = make_quantizer(recipe.activation, split, split.activation_axis if split else 1)
        self.bias_quantizer = make_quantizer(recipe.bias) if bias is not None else None
        self.let = Transformation(channels, recipe.let, groups) if recipe.let is not None else None
        for part in (self.weight_quantizer, self.activation_quantizer, self.bias_quantizer, self.let):
            if part is not None:
                part.to(weight.device, weight.dtype)
        self.parametrization: WeightParametrization | None = None
        self.frozen: Parts | None = None

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return the transformed and rounded input; comes before :meth:`parts`, since it may set the scale."""
        if self.let is not None:
            self.let.show(x, self.channel_axis, self.changed_weight())
            x = self.let(x, self.channel_axis)
        return x if self.activation_quantizer is None else self.activation_quantizer(x)

    def parts(self) -> Parts:
        """Return what the rounded input meets, differentiable in weight, bias, transformation and bounds."""
        if self.frozen is not None:
            return self.frozen
        weight = self.transformed_weight()
        if self.weight_quantizer is not None:
            weight = (self.weight_quantizer(weight) if self.parametrization is None
                      else self.parametrization.round(weight, self.weight_quantizer))
        bias = self.bias if self.bias_quantizer is None or self.bias is None else self.bias_quantizer(self.bias)
        if self.let is None:
            return Parts(weight, bias, None)
        border = self.let.border(self.changed_weight())
        if self.has_border():
            return Parts(weight, bias, border)
        term = border.flatten(1).sum(1)
        return Parts(weight, term if bias is None else bias + term, None)

    def changed_weight(self) -> torch.Tensor:
        """Return W, the weight as the parametrization changes it."""
        return self.weight if self.parametrization is None else self.parametrization.weight(self.weight)

    def transformed_weight(self) -> torch.Tensor:
        """Return the weight that is rounded, W s."""
        weight = self.changed_weight()
        return weight if self.let is None else self.let.weight(weight)

    @torch.no_grad()
    def merge_weight(self) -> None:
        """Make what the parametrization does a part of the weight, and drop it."""
        if self.parametrization is not None:
            factor = 1.0 if self.let is None else self.let.weight(torch.ones_like(self.weight))
            self.replace_weight(self.parametrization.merged(self.weight, factor, self.weight_quantizer))
            self.parametrization = None

    def replace_weight(self, weight: torch.Tensor) -> None:
        """Take another weight of the same shape, as a parameter of this layer's own: a teacher may share the old one.

        Raises:
            ValueError: The shape is another.
        """
        if weight.shape != self.weight.shape:
            raise ValueError(f"a weight {tuple(weight.shape)} does not fit a layer with {tuple(self.weight.shape)}")
        self.weight = nn.Parameter(weight.detach().to(self.weight, copy=True), self.weight.requires_grad)
        self.owns_weight = True

    def has_border(self) -> bool:
        """Whether the term W o differs at the image border."""
        return False

    def rounded_parameters(self) -> Iterator[tuple[str, Quantizer, torch.Tensor]]:
        """Yield name, quantizer and tensor of everything rounded that does not depend on the input."""
        if self.weight_quantizer is not None:
            yield from pieces("weight_quantizer", self.weight_quantizer, self.transformed_weight().detach())
        if self.bias_quantizer is not None and self.bias is not None:
            yield from pieces("bias_quantizer", self.bias_quantizer, self.bias.detach())

    def freeze(self) -> None:
        """Compute :meth:`parts` once, for inference with parameters that do not change."""
        self.frozen = None
        with torch.no_grad():
            weight, bias, border = self.parts()
        self.frozen = Parts(weight.detach(), None if bias is None else bias.detach(), border)

    def thaw(self) -> None:
        """Go back to computing them at each forward."""
        self.frozen = None


def _check_split(at: int | str, channels: int, groups: int) -> None:
    if groups > 1:
        raise UserError("split_in cannot cut a Conv2d with groups; leave it out")
    if at == "concat":
        raise UserError("split_in 'concat': nothing is known to be joined before this layer; give a channel number")
    if channels < 2 or (isinstance(at, int) and at >= channels):
        raise UserError(f"split_in at {at} leaves nothing of the {channels} input channels for the second part")


def weighted_layers(model: nn.Module) -> Iterator[tuple[str, QuantWeighted]]:
    """Yield the names and modules of all quantized layers with a weight."""
    for name, module in model.named_modules():
        if isinstance(module, QuantWeighted):
            yield name, module


def merge_weights(model: nn.Module) -> None:
    """Make what parametrizations do a part of the weights of a model, and drop them."""
    for _, layer in weighted_layers(model):
        layer.merge_weight()


def replaced_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that are no longer the full-precision ones, by the names of the layers."""
    return {name: layer.weight.detach() for name, layer in weighted_layers(model) if layer.owns_weight}


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Context in which every weight is rounded once, for inference with weights that do not change."""
    layers = [layer for _, layer in weighted_layers(model)]
    for layer in layers:
        layer.freeze()
    try:
        yield
    finally:
        for layer in layers:
            layer.thaw()
