"""AdaRound: for each weight it is learned whether to round it up or down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.bounds import EVERYWHERE, matches
from basicsr_quant.quant.grids.base import working_dtype
from basicsr_quant.quant.layers.parametrization import WeightParametrization
from basicsr_quant.quant.layers.weighted import QuantWeighted, weighted_layers
from basicsr_quant.quant.quantizer import Quantizer, State
from basicsr_quant.quant.selection import Selection
from basicsr_quant.quant.split_quantizer import SplitQuantizer, pieces

STRETCH = 1.2
SHIFT = 0.1


def rectified_sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """Return h = clip(1.2 sigmoid(V) - 0.1, 0, 1)."""
    return torch.clamp(STRETCH * torch.sigmoid(logits) - SHIFT, 0, 1)


def initial_logits(fraction: torch.Tensor) -> torch.Tensor:
    """Return the V for which h is a given fraction in [0, 1)."""
    return torch.logit((fraction + SHIFT) / STRETCH)


class LearnedRounding(WeightParametrization):
    """W_q = first + s * clip(floor((W - first) / s) + h(V), 0, 2^b - 1), at the start W itself where it is in range.

    It works on every grid; the bounds are taken as they are and get no gradient. In a layer with an equivalent
    transformation it is W times the scale that is rounded, and the offset's term is that of the rounded weight once it
    is merged. While ``decided`` is set, every h counts as 0 or 1.

    Args:
        weight: As it reaches the quantizer, (O, I, ...).
        quantizer: Of this weight, its bounds set.

    Source: Nagel et al., "Up or down? Adaptive rounding for post-training quantization" (ICML 2020), section 3.2.
    """

    def __init__(self, weight: torch.Tensor, quantizer: Quantizer | SplitQuantizer) -> None:
        super().__init__()
        self.decided = False
        weight = working_dtype(weight.detach())
        fractions = []
        for _, part, piece in pieces("", quantizer, weight):
            step, first = part.affine()
            scaled = (piece - first) / step
            fractions.append(scaled - scaled.floor())
        self.logits = nn.Parameter(initial_logits(_joined(fractions, quantizer)))

    def round(self, weight: torch.Tensor, quantizer: Quantizer | SplitQuantizer) -> torch.Tensor:
        """Return the softly rounded weight; parts whose quantizer is not on ``quantize`` are left to the quantizer."""
        return self._rounded(weight, quantizer, self._hard() if self.decided else rectified_sigmoid(self.logits))

    def merged(self, weight: torch.Tensor, factor: torch.Tensor | float,
               quantizer: Quantizer | SplitQuantizer | None) -> torch.Tensor:
        """Return values of the grid, up where V >= 0, that rounding to the nearest leaves as they are."""
        assert quantizer is not None
        return self._rounded(weight * factor, quantizer, self._hard()) / factor

    def _hard(self) -> torch.Tensor:
        return (self.logits >= 0).to(self.logits.dtype)

    def _rounded(self, weight: torch.Tensor, quantizer: Quantizer | SplitQuantizer, up: torch.Tensor) -> torch.Tensor:
        """Return the weight rounded down, plus ``up`` steps."""
        rounded = []
        for (_, part, piece), (_, _, rise) in zip(pieces("", quantizer, weight), pieces("", quantizer, up),
                                                  strict=True):
            if part.state is not State.QUANTIZE:
                rounded.append(part(piece))
                continue
            step, first = part.affine()
            down = torch.floor((working_dtype(piece.detach()) - first) / step)
            rounded.append((first + step * torch.clamp(down + rise, 0, 2**part.bits - 1)).to(piece.dtype))
        return _joined(rounded, quantizer)


def _joined(parts: Sequence[torch.Tensor], quantizer: Quantizer | SplitQuantizer) -> torch.Tensor:
    return torch.cat(list(parts), quantizer.axis) if isinstance(quantizer, SplitQuantizer) else parts[0]


def install_learned_rounding(model: nn.Module, where: Sequence[str] = EVERYWHERE) -> None:
    """Learn the rounding of weights from now on; ``merge_weights`` ends it.

    Args:
        model: Prepared and calibrated model, or a part of one.
        where: fnmatch patterns; a layer with a rounded weight is taken if any of them matches its name.
    """
    for name, layer in weighted_layers(model):
        if layer.weight_quantizer is not None and matches(name, where):
            layer.parametrization = LearnedRounding(layer.transformed_weight(), layer.weight_quantizer)


def learned_roundings(model: nn.Module, least: float = 0.0) -> Selection:
    """Select the logits V of all layers; their steps are not relative to anything.

    Args:
        model: Prepared and calibrated, with learned rounding.
        least: Means nothing here.

    Raises:
        UserError: No layer has learned rounding.
    """
    model.requires_grad_(False)
    parameters = [rounding.logits for rounding in _roundings(model)]
    if not parameters:
        raise UserError("no layer has a weight whose rounding could be learned; quantize weights in the plan")
    for parameter in parameters:
        parameter.requires_grad_(True)
    return Selection(parameters, (), None)


@contextmanager
def decided_roundings(model: nn.Module) -> Iterator[None]:
    """Context in which roundings that are still being learned round up or down, as they will once they are merged."""
    roundings = list(_roundings(model))
    for rounding in roundings:
        rounding.decided = True
    try:
        yield
    finally:
        for rounding in roundings:
            rounding.decided = False


def rounding_penalty(model: nn.Module, exponent: float) -> torch.Tensor:
    """Return the sum over all weights of 1 - |2 h(V) - 1|^exponent, which is 0 where every h is 0 or 1."""
    terms = [(1 - (2 * rectified_sigmoid(rounding.logits) - 1).abs().pow(exponent)).sum()
             for rounding in _roundings(model)]
    return torch.stack(terms).sum()


def _roundings(model: nn.Module) -> Iterator[LearnedRounding]:
    for _, layer in weighted_layers(model):
        if isinstance(layer.parametrization, LearnedRounding):
            yield layer.parametrization


def has_rounded_weight(module: nn.Module) -> bool:
    """Whether a module is, or holds, a layer whose weight is rounded."""
    return any(isinstance(layer, QuantWeighted) and layer.weight_quantizer is not None for layer in module.modules())
