"""Quantization-aware LoRA: a low-rank change of each weight is learned through its rounding, then merged for free."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from basicsr_quant import randomness
from basicsr_quant.errors import UserError
from basicsr_quant.quant.bounds import EVERYWHERE, bound_parameters, matches, order_keeper, range_scales
from basicsr_quant.quant.calibrate import activation_names
from basicsr_quant.quant.layers.parametrization import WeightParametrization
from basicsr_quant.quant.layers.weighted import QuantWeighted, weighted_layers
from basicsr_quant.quant.selection import Selection
from basicsr_quant.quant.split_quantizer import pieces


class LowRankChange(WeightParametrization):
    """W -> W + B A, with W as a matrix (O, I * kh * kw); B is 0 at the start.

    Args:
        weight: Of the layer, (O, I, ...).
        rank: Rows of A, columns of B.
        seed: Of the draws for A, uniform within 1 / sqrt(I * kh * kw).
        name: Of the layer, for the draws.

    Source: He et al., "EfficientDM" (ICLR 2024), section 3.2.
    """

    def __init__(self, weight: torch.Tensor, rank: int, seed: int, name: str) -> None:
        super().__init__()
        columns = weight[0].numel()
        draws = randomness.generator(seed, f"lora {name}").uniform(-1, 1, (rank, columns)) / math.sqrt(columns)
        self.down = nn.Parameter(torch.from_numpy(draws).to(weight))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return W + B A."""
        return weight + (self.up @ self.down).view_as(weight)


def install_low_rank_changes(model: nn.Module, rank: int, seed: int = 0, where: Sequence[str] = EVERYWHERE) -> None:
    """Let weights change by B A from now on; ``merge_weights`` ends it, at no loss.

    Args:
        model: Prepared and calibrated model.
        rank: Of all changes.
        seed: Of the initial values.
        where: fnmatch patterns; a layer with a rounded weight is taken if any of them matches its name.
    """
    for name, layer in weighted_layers(model):
        if layer.weight_quantizer is not None and matches(name, where):
            layer.parametrization = LowRankChange(layer.weight.detach(), rank, seed, name)


def low_rank_changes(model: nn.Module, least: float) -> Selection:
    """Select A and B of all layers, and the bounds of all quantizers but those of weights and biases.

    The unit of A and B is the layer's mean step, so that the weights of all layers move by alike parts of a step,
    whatever their bits and their range.

    Args:
        model: Prepared and calibrated, with low-rank changes.
        least: Fraction of its present width that each range keeps; 0 = unchecked.

    Raises:
        UserError: There are no such changes.

    Source: EfficientDM section 3.3 (scale-aware optimization).
    """
    names = activation_names(model)
    parameters, units = bound_parameters(model, names), range_scales(model, names)
    changed = [(layer, layer.parametrization) for _, layer in weighted_layers(model)
               if isinstance(layer.parametrization, LowRankChange)]
    if not changed:
        raise UserError("no layer has a low-rank change to learn; set its rank")
    for layer, change in changed:
        parameters += list(change.requires_grad_(True).parameters())
        units += [mean_step(layer)] * 2
    return Selection(parameters, units, order_keeper(model, least) if least else None)


def mean_step(layer: QuantWeighted) -> torch.Tensor:
    """Return the step of a layer's weight, averaged over channels and parts."""
    assert layer.weight_quantizer is not None
    steps = [part.affine()[0].flatten() for _, part, _ in pieces("", layer.weight_quantizer, layer.weight)]
    return torch.cat(steps).mean()
