"""Prepare a model: put quantized modules in the places that the plan names."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.foreign import QuantizedModel
from basicsr_quant.quant.layers.table import table
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.quantizer import Quantizer


def prepare(model: nn.Module, plan: QuantPlan, example_input: torch.Tensor | None = None) -> nn.Module:
    """Swap modules of a model for quantized ones, in place, by the first matching line of the plan.

    Only modules of a registered type (Linear, Conv2d, Operand, and what others registered) inside ``model`` can match.
    The parameters stay the same objects unless a layer is split.

    Args:
        model: Any module; changed in place.
        plan: What to quantize.
        example_input: (B, 3, H, W), run once to find the operations that ``op:`` lines are about.

    Returns:
        ``model``, or, if the plan has ``op:`` lines, a :class:`QuantizedModel` around it.

    Raises:
        UserError: A line matches nothing, a module is quantized already or shared, or an example input is missing.
    """
    for name, module in model.named_modules():
        if isinstance(module, (Quantizer, QuantWeighted, QuantizedModel)):
            raise UserError(f"'{name or type(module).__name__}' is quantized already; prepare a fresh model")
    used: set[int] = set()
    chosen = []
    for name, module in model.named_modules():
        if type(module) not in table() or not name:
            continue
        found = plan.recipe_for(name)
        if found is not None:
            used.add(found[0])
            if found[1] is not None:
                chosen.append((name, module, found[1]))
    _refuse_shared(model, [name for name, _, _ in chosen])
    for name, module, recipe in chosen:
        try:
            replacement = table()[type(module)](module, recipe)
        except UserError as error:
            raise UserError(f"'{name}': {error}") from error
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement.train(module.training))
    prepared: nn.Module = model
    if plan.has_operations:
        if example_input is None:
            raise UserError("the plan has 'op:' lines; an example input is needed to find the operations")
        prepared, matched = QuantizedModel.record(model, plan, example_input)
        used |= matched
    _refuse_idle_lines(plan, used)
    return prepared


def _refuse_shared(model: nn.Module, names: list[str]) -> None:
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for name in names:
        if places[id(model.get_submodule(name))] > 1:
            raise UserError(f"'{name}' is shared by several places of the model; one pair of bounds cannot serve them, "
                            "leave it out by 'none'")


def _refuse_idle_lines(plan: QuantPlan, used: set[int]) -> None:
    for index, line in enumerate(plan.lines):
        if index not in used:
            shadowed = any(earlier.pattern == line.pattern and earlier.operation == line.operation
                           for earlier in plan.lines[:index])
            reason = ("an earlier line matches all of it" if shadowed
                      else "no quantizable module or operation has such a name")
            raise UserError(f"plan line {index + 1} ('{line.key}') matches nothing: {reason}")
