"""How much each layer suffers from few bits, and which layers should get more of them for the same bytes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from basicsr_quant.quant.calibrate import set_state
from basicsr_quant.quant.foreign import inner_network
from basicsr_quant.quant.layers.table import table
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.quantizer import State

Errors = Mapping[int, float]


def planned_layers(model: nn.Module, plan: QuantPlan) -> dict[str, int]:
    """Return name -> weights of the layers of a model, not yet prepared, whose weights a plan quantizes."""
    found = {name: (module, plan.recipe_for(name)) for name, module in model.named_modules()
             if name and type(module) in table()}
    return {name: module.weight.numel() for name, (module, line) in found.items()
            if line is not None and line[1] is not None and line[1].weight is not None}


@torch.no_grad()
def layer_errors(model: nn.Module, layers: Sequence[str],
                 batches: Sequence[torch.Tensor]) -> Iterator[tuple[str, float]]:
    """Yield name and mean squared error of the output when only this layer is quantized, weight and input.

    Args:
        model: Prepared and calibrated; all its quantizers are on afterwards.
        layers: Names in the network.
        batches: Inputs (B, 3, H, W).
    """
    network = inner_network(model)
    try:
        set_state(model, State.OFF)
        wanted = [model(batch) for batch in batches]
        count = sum(output.numel() for output in wanted)
        for name in layers:
            set_state(network.get_submodule(name), State.QUANTIZE)
            squares = [(model(batch) - output).double().square().sum()
                       for batch, output in zip(batches, wanted, strict=True)]
            set_state(network.get_submodule(name), State.OFF)
            yield name, float(torch.stack(squares).sum() / count)
    finally:
        set_state(model, State.QUANTIZE)


def allocate(errors: Mapping[str, Errors], weights: Mapping[str, int], budget: int) -> dict[str, int]:
    """Choose the bits of each layer for the least sum of errors, with at most ``budget`` bits of weights.

    Everything begins at its lowest width; the layer that gains most for each further bit gets its next width, until no
    step fits. Only widths on the lower convex hull of a layer's errors are steps, so that gains per bit fall and the
    choice is the best for every budget that it uses up.

    Args:
        errors: Layer -> bits -> error of this layer alone; errors of different layers add up.
        weights: Layer -> number of weights.
        budget: Bits that all weights may take.

    Raises:
        ValueError: The lowest widths do not fit.
    """
    hulls = {name: lower_hull(values) for name, values in errors.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(bits * weights[name] for name, bits in chosen.items())
    if left < 0:
        raise ValueError(f"the lowest widths take {budget - left} bits, more than {budget}")
    steps = [_step(name, hull, 0, errors[name], weights[name]) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, cost, name, index = heapq.heappop(steps)
        if cost > left:
            continue
        left -= cost
        chosen[name] = hulls[name][index]
        if index + 1 < len(hulls[name]):
            heapq.heappush(steps, _step(name, hulls[name], index, errors[name], weights[name]))
    return chosen


def _step(name: str, hull: Sequence[int], index: int, errors: Errors, weights: int) -> tuple[float, int, str, int]:
    """Return (error change per bit, bits, layer, index of the next width) of the step after ``index``."""
    here, there = hull[index], hull[index + 1]
    cost = (there - here) * weights
    return (errors[there] - errors[here]) / cost, cost, name, index + 1


def lower_hull(errors: Errors) -> list[int]:
    """Return the widths, rising, on the lower convex hull of the errors, as far as more bits mean a smaller error."""
    hull: list[int] = []
    for bits in sorted(errors):
        while len(hull) > 1 and _slope(errors, hull[-2], hull[-1]) >= _slope(errors, hull[-1], bits):
            hull.pop()
        hull.append(bits)
    while len(hull) > 1 and errors[hull[-1]] >= errors[hull[-2]]:
        hull.pop()
    return hull


def _slope(errors: Errors, first: int, second: int) -> float:
    return (errors[second] - errors[first]) / (second - first)
