"""What a stage of learning may choose: parameters, the sizes of their steps, and what keeps them in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from basicsr_quant.quant.bounds import bound_parameters, order_keeper, range_scales
from basicsr_quant.quant.let_learning import scale_keeper, transformation_parameters, transformation_units


class Selection(NamedTuple):
    """What learns.

    Args:
        parameters: With gradients switched on; those of everything else in the model are off.
        units: For each parameter, the size of a step of :class:`~basicsr_quant.quant.bounds.RelativeSteps`.
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
    keep = order_keeper(model, least) if least else None
    return Selection(bound_parameters(model), range_scales(model), keep)


def transformations(model: nn.Module, least: float) -> Selection:
    """Select scales and offsets of layers, and the scales of smoothed attentions.

    Args:
        model: Prepared and calibrated.
        least: Fraction of its present value that each scale keeps; 0 = unchecked.
    """
    keep = scale_keeper(model, least) if least else None
    return Selection(transformation_parameters(model), transformation_units(model), keep)
