"""Learning bounds: which parameters, steps relative to the range, bounds that stay in order."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.quantizer import Quantizer

EVERYWHERE = ("*",)


def bound_parameters(model: nn.Module, where: Sequence[str] = EVERYWHERE) -> list[nn.Parameter]:
    """Return lower and upper bounds, in module order, after switching off the gradients of everything else.

    Args:
        model: Prepared model.
        where: fnmatch patterns; a quantizer is taken if any of them matches its name.
    """
    model.requires_grad_(False)
    quantizers = _quantizers(model, where)
    bounds = [bound for quantizer in quantizers for bound in (quantizer.lower_bound, quantizer.upper_bound)]
    for bound in bounds:
        bound.requires_grad_(True)
    return bounds


def range_scales(model: nn.Module, where: Sequence[str] = EVERYWHERE) -> list[torch.Tensor]:
    """Return, for each parameter of :func:`bound_parameters`, the present width of its quantizer's range."""
    return [(quantizer.upper_bound - quantizer.lower_bound).detach().clone()
            for quantizer in _quantizers(model, where) for _ in range(2)]


def quantizers_of(model: nn.Module, side: str) -> list[str]:
    """Return names of quantizers, which are patterns of the other functions here.

    Args:
        model: Prepared model.
        side: ``weights``, ``activations``, or ``all`` of both.
    """
    names = [name for name, _ in named_quantizers(model)]
    return [name for name in names if side == "all" or ("weight_quantizer" in name) == (side == "weights")]


def matches(name: str, where: Sequence[str]) -> bool:
    """Whether any of the fnmatch patterns matches a module's name; ``*`` matches dots too."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in where)


def _quantizers(model: nn.Module, where: Sequence[str]) -> list[Quantizer]:
    return [quantizer for name, quantizer in named_quantizers(model) if matches(name, where)]


class RelativeSteps:
    """Make an optimizer's steps relative: each parameter moves by its scale times the optimizer's own step.

    Adam's step does not depend on the size of the gradient, so this is Adam on parameter / scale, up to its epsilon.

    Args:
        optimizer: Its ``step`` is wrapped by hooks.
        scales: One tensor for each parameter, in the order of the parameter groups.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scales: list[torch.Tensor]) -> None:
        self._scales = scales
        self._before: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(self._remember)
        optimizer.register_step_post_hook(self._rescale)

    def _remember(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._before = [parameter.detach().clone() for parameter in _parameters(optimizer)]

    @torch.no_grad()
    def _rescale(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = _parameters(optimizer)
        moves = torch._foreach_sub(parameters, self._before)
        torch._foreach_mul_(moves, self._scales)
        torch._foreach_copy_(parameters, torch._foreach_add(self._before, moves))


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def order_keeper(model: nn.Module, fraction: float) -> Callable[[], None]:
    """Return a function that pushes upper bounds up so that every range keeps ``fraction`` of its present width."""
    quantizers = [quantizer for _, quantizer in named_quantizers(model)]
    lowers: list[torch.Tensor] = [quantizer.lower_bound for quantizer in quantizers]
    uppers: list[torch.Tensor] = [quantizer.upper_bound for quantizer in quantizers]
    widths = [(fraction * (upper - lower)).detach() for lower, upper in zip(lowers, uppers, strict=True)]

    @torch.no_grad()
    def keep() -> None:
        torch._foreach_maximum_(uppers, list(torch._foreach_add(lowers, widths)))

    return keep
