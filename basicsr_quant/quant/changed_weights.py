"""Weights that learning changed, and what still changes them, in state dicts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from basicsr_quant.quant.adaround import LearnedRounding
from basicsr_quant.quant.layers.parametrization import WeightParametrization
from basicsr_quant.quant.layers.weighted import QuantWeighted, replaced_weights, weighted_layers
from basicsr_quant.quant.quantization_aware_lora import LowRankChange


def changed_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that are no longer the full-precision ones, named as in ``model.state_dict()``."""
    return {f"{name}.weight": weight for name, weight in replaced_weights(model).items()}


def install_changes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Make a prepared model ready for a state dict that holds changed weights and parametrizations.

    A layer gets a weight of its own where ``state`` has one, and the parametrization that ``state`` has, which is none
    if there is none. One that fits stays the object that it is: an optimizer may know its parameters.

    Args:
        model: Prepared.
        state: Names as in ``model.state_dict()``; it is to be loaded next.

    Raises:
        ValueError: A weight has another shape, or a parametrization is none that is known.
    """
    for name, layer in weighted_layers(model):
        weight = state.get(f"{name}.weight")
        if weight is not None and not layer.owns_weight:
            layer.replace_weight(weight)
        prefix = f"{name}.parametrization."
        saved = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if _shapes(layer.parametrization) != {key: value.shape for key, value in saved.items()}:
            layer.parametrization = _made(name, layer, saved) if saved else None


def _shapes(parametrization: WeightParametrization | None) -> dict[str, torch.Size]:
    return {} if parametrization is None else {
        name: value.shape for name, value in parametrization.named_parameters()}


def _made(name: str, layer: QuantWeighted, saved: Mapping[str, torch.Tensor]) -> WeightParametrization:
    if saved.keys() == {"down", "up"}:
        return LowRankChange(layer.weight.detach(), len(saved["down"]), 0, name)
    if saved.keys() == {"logits"} and layer.weight_quantizer is not None:
        return LearnedRounding(layer.transformed_weight(), layer.weight_quantizer)
    raise ValueError(f"'{name}' cannot have {', '.join(sorted(saved))} learned of its weight")
