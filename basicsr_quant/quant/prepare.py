"""Prepare a model: put quantized modules in the places that the plan names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.foreign import QuantizedModel
from basicsr_quant.quant.layers.attention import QuantAttention, is_attention, quantize_attention
from basicsr_quant.quant.layers.table import table
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.plan import ATTENTION, QuantPlan
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import Recipe


def prepare(model: nn.Module, plan: QuantPlan, example_input: torch.Tensor | None = None,
            concat_splits: Mapping[str, int] | None = None) -> nn.Module:
    """Swap modules of a model for quantized ones, in place, by the first matching line of the plan.

    Only modules of a registered type (Linear, Conv2d, Operand, and what others registered) inside ``model`` can match;
    ``op:attention`` lines match diffusers' attention modules. The parameters stay the same objects unless the rows of a
    layer are split.

    Args:
        model: Any module; changed in place.
        plan: What to quantize.
        example_input: (B, 3, H, W), run once to find the matrix products and softmaxes that ``op:`` lines are about.
        concat_splits: Name of each layer that reads two joined tensors -> channel where the second begins, for
            ``split_in: {at: concat}``.

    Returns:
        ``model``, or, if such lines are in the plan, a :class:`QuantizedModel` around it.

    Raises:
        UserError: A line matches nothing, a module is quantized already or shared, or an example input is missing.
    """
    for name, module in model.named_modules():
        if isinstance(module, (Quantizer, QuantWeighted, QuantAttention, QuantizedModel)):
            raise UserError(f"'{name or type(module).__name__}' is quantized already; prepare a fresh model")
    used: set[int] = set()
    chosen: list[tuple[str, nn.Module, Recipe]] = []
    attentions: list[tuple[str, nn.Module, Recipe]] = []
    for name, module in model.named_modules():
        attention = is_attention(module)
        if (type(module) not in table() and not attention) or not name:
            continue
        found = plan.recipe_for(name, ATTENTION if attention else None)
        if found is not None:
            used.add(found[0])
            if found[1] is not None:
                (attentions if attention else chosen).append((name, module, found[1]))
    _refuse_shared(model, [name for name, _, _ in chosen + attentions])
    for name, module, recipe in attentions:
        try:
            quantize_attention(module, recipe)
        except UserError as error:
            raise UserError(f"'{name}': {error}") from error
    for name, module, recipe in chosen:
        try:
            replacement = table()[type(module)](module, _located(recipe, (concat_splits or {}).get(name)))
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


def _located(recipe: Recipe, joint: int | None) -> Recipe:
    """Return the recipe with the channel in the place of ``concat``."""
    if joint is None or recipe.split_in is None or recipe.split_in.at != "concat":
        return recipe
    return replace(recipe, split_in=replace(recipe.split_in, at=joint))


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
