"""Learning equivalent transformations: which parameters, steps relative to their size, scales that stay positive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from basicsr_quant.quant.bounds import EVERYWHERE, matches
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.let import Scale, Transformation
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.split_quantizer import SplitQuantizer


def transformation_parameters(model: nn.Module, where: Sequence[str] = EVERYWHERE) -> list[nn.Parameter]:
    """Return scales and offsets, in module order, after switching off the gradients of everything else.

    Args:
        model: Prepared model.
        where: fnmatch patterns; a transformation or attention scale is taken if any of them matches its name.
    """
    model.requires_grad_(False)
    parameters = [parameter for parameter, _ in _learnable(model, where)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def transformation_units(model: nn.Module, where: Sequence[str] = EVERYWHERE) -> list[torch.Tensor]:
    """Return, for each parameter of :func:`transformation_parameters`, the size of a step for :class:`RelativeSteps`.

    That of a scale is the scale itself, so that its logarithm moves by the learning rate. That of an offset is the
    width of the layer's input range, in units of the input.
    """
    return [unit for _, unit in _learnable(model, where)]


def scale_keeper(model: nn.Module, fraction: float) -> Callable[[], None]:
    """Return a function that keeps every scale at or above ``fraction`` of its present value; all must be positive.

    There may be none.
    """
    values: list[torch.Tensor] = [module.value for module in model.modules() if isinstance(module, Scale)]
    least = [(fraction * value).detach() for value in values]

    @torch.no_grad()
    def keep() -> None:
        if values:  # torch refuses empty lists
            torch._foreach_maximum_(values, least)

    return keep


def _learnable(model: nn.Module, where: Sequence[str]) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Yield parameters and the sizes of their steps."""
    widths = {id(module.let): _input_width(module) for module in model.modules() if isinstance(module, QuantWeighted)}
    for name, module in model.named_modules():
        if isinstance(module, Scale) and matches(name, where):
            yield module.value, module.value.detach().abs()
        if isinstance(module, Transformation) and matches(name, where):
            yield module.offset, module.scale.value.detach().abs() * widths[id(module)]


def _input_width(layer: QuantWeighted) -> torch.Tensor | float:
    """Return the width of the range of a layer's transformed input; 1 if it is not rounded."""
    quantizer = layer.activation_quantizer
    if quantizer is None:
        return 1.0
    parts: list[Quantizer] = quantizer.quantizers() if isinstance(quantizer, SplitQuantizer) else [quantizer]
    lower = torch.stack([part.lower_bound.detach() for part in parts]).amin()
    return torch.stack([part.upper_bound.detach() for part in parts]).amax() - lower
