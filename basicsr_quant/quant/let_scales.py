"""Initial scales of the learnable equivalent transformation, from data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.let import Scale
from basicsr_quant.quant.reduction import reduce_

SMALLEST_MAXIMUM = 1e-5


def initial_scale(divided: torch.Tensor, multiplied: torch.Tensor, exponent: float) -> torch.Tensor:
    """Return (a / b)^exponent, both maxima at least 1e-5.

    Args:
        divided: Largest absolute values of what the scale will divide, per channel (an input, keys, values).
        multiplied: The same of what it will multiply (a weight, queries, a softmax map).
        exponent: 0 leaves everything as it is, 0.5 makes both maxima equal.

    Source: PassionSR specification 4.4 and 3.4.
    """
    return divided.clamp_min(SMALLEST_MAXIMUM).pow(exponent) / multiplied.clamp_min(SMALLEST_MAXIMUM).pow(exponent)


class _Estimate:
    """The scale of one place, kept up to date while tensors pass."""

    def __init__(self, scale: Scale, momentum: float | None) -> None:
        self.scale, self.momentum = scale, momentum
        self.largest: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.no_grad()
    def __call__(self, divided: torch.Tensor, multiplied: torch.Tensor) -> None:
        divided, multiplied = (reduce_(maximum.clone(), "max") for maximum in (divided, multiplied))
        first = self.largest is None
        if self.largest is not None and self.momentum is None:
            divided, multiplied = torch.maximum(divided, self.largest[0]), torch.maximum(multiplied, self.largest[1])
        self.largest = divided, multiplied
        new = initial_scale(divided, multiplied, self.scale.alpha)
        if first or self.momentum is None:
            self.scale.value.copy_(new)
        else:
            self.scale.value.mul_(self.momentum).add_(new, alpha=1 - self.momentum)


@contextmanager
def estimate_scales(model: nn.Module, momentum: float | None = None) -> Iterator[None]:
    """Context in which every forward of ``model`` updates the scales, before they are used.

    Args:
        model: With transformed layers or smoothed attentions.
        momentum: None takes the maxima over all batches. A number keeps that share of the old scale at every batch
            after the first (released code: 0.9).

    Raises:
        UserError: On leaving, if a scale saw no data, or the model has none.
    """
    estimates = {name: _Estimate(module, momentum) for name, module in model.named_modules()
                 if isinstance(module, Scale)}
    if not estimates:
        raise UserError("the model has no equivalent transformation whose scales could be estimated")
    for estimate in estimates.values():
        estimate.scale.watcher = estimate
    try:
        yield
    finally:
        for estimate in estimates.values():
            estimate.scale.watcher = None
    for name, estimate in estimates.items():
        if estimate.largest is None:
            raise UserError(f"calibration: '{name}' saw no data; is its module part of the forward pass?")
