"""Folding the equivalent transformation of layers into the norm before them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.layers.weighted import QuantWeighted


@torch.no_grad()
def fold_into_norm(norm: nn.GroupNorm | nn.LayerNorm, layers: Sequence[QuantWeighted]) -> None:
    """Let a norm's affine part do (x - o) / s for the layers that read it; only after s and o have stopped changing.

    Args:
        norm: Its output goes to ``layers`` and nowhere else, channels unmixed.
        layers: Their scales and offsets must be equal.

    Raises:
        UserError: The norm has no affine part, a layer has no transformation, the layers differ, or one pads its input
            before the transformation.

    Source: PassionSR specification 4.5.
    """
    transformations = [layer.let for layer in layers if layer.let is not None]
    first = transformations[0] if transformations else None
    if norm.weight is None or norm.bias is None:
        raise UserError("a norm without weight and bias can take no transformation")
    if first is None or len(transformations) < len(layers):
        raise UserError("a layer behind the norm has no equivalent transformation to fold; add 'let' to its plan line")
    for layer, let in zip(layers, transformations, strict=True):
        if getattr(layer, "pads_input", False):
            raise UserError("a Conv2d with 'padding: transformed_zero' must transform its input itself")
        if let.recipe.offset_sign != first.recipe.offset_sign or not (
                torch.equal(let.scale.value, first.scale.value) and torch.equal(let.offset, first.offset)):
            raise UserError("layers behind one norm have different scales or offsets; tie them before folding")
    norm.bias.copy_(first(norm.bias, 0))
    norm.weight.div_(first.scale.value)
    for let in transformations:
        let.input_is_transformed = True
