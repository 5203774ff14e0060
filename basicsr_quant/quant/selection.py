"""What a stage of learning may choose: parameters, the sizes of their steps, and what keeps them in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from basicsr_quant.quant.bounds import EVERYWHERE, bound_parameters, order_keeper, range_scales
from basicsr_quant.quant.calibrate import activation_names
from basicsr_quant.quant.let_learning import scale_keeper, transformation_parameters, transformation_units


class Selection(NamedTuple):
    """What learns.

    Args:
        parameters: With gradients switched on; those of everything else in the model are off.
        units: For each parameter, the size of a step of :class:`~basicsr_quant.quant.bounds.RelativeSteps`; none where
            steps are relative to nothing.
        keep: To be called after each step; None if nothing has to be kept.
    """

    parameters: Sequence[nn.Parameter]
    units: Sequence[torch.Tensor]
    keep: Callable[[], None] | None


def bounds(model: nn.Module, least: float) -> Selection:
    """Select the bounds of all quantizers.

    Args:
        model: Prepared and calibrated.
        least: Fraction of its present width that each range keeps; 0 = unchecked.
    """
    return _bounds(model, least, EVERYWHERE)


def activation_bounds(model: nn.Module, least: float) -> Selection:
    """Select the bounds of all quantizers but those of weights and biases; as :func:`bounds`."""
    return _bounds(model, least, activation_names(model))


def _bounds(model: nn.Module, least: float, where: Sequence[str]) -> Selection:
    keep = order_keeper(model, least) if least else None
    return Selection(bound_parameters(model, where), range_scales(model, where), keep)


def transformations(model: nn.Module, least: float) -> Selection:
    """Select scales and offsets of layers, and the scales of smoothed attentions.

    Args:
        model: Prepared and calibrated.
        least: Fraction of its present value that each scale keeps; 0 = unchecked.
    """
    keep = scale_keeper(model, least) if least else None
    return Selection(transformation_parameters(model), transformation_units(model), keep)


def transformations_and_bounds(model: nn.Module, least: float) -> Selection:
    """Select what :func:`transformations` and :func:`bounds` select."""
    parts = [transformations(model, least), bounds(model, least)]
    parameters = [parameter for part in parts for parameter in part.parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def keep() -> None:
        for part in parts:
            if part.keep is not None:
                part.keep()

    return Selection(parameters, [unit for part in parts for unit in part.units], keep)
