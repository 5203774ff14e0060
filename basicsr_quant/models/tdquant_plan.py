"""What 2DQuant quantizes in SwinIR, and which features its distillation matches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.options.methods.tdquant import TDQuantOptions
from basicsr_quant.quant.foreign import inner_network
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.taps import match_modules

ONE_SIDED = "one_sided"


def plan_of(options: TDQuantOptions, bits: int | None = None) -> QuantPlan:
    """Return the plan of the options: ``quant:plan``, or the default one of SwinIR.

    Lines may leave out bits, observer and, for weights, ``per``, which are then those of the options; ``observer:
    one_sided`` stands for ``quant:one_sided_observer``.

    Args:
        options: Typed options.
        bits: Width to take if the options have none (that of a checkpoint).

    Raises:
        UserError: The network is not SwinIR and there is no plan, or a line is wrong.
    """
    quant = options.quant
    width: dict[str, Any] = {} if (bits or options.bit) is None else {"bits": options.bit or bits}
    defaults = {"weight": {**width, "observer": quant.weight_observer, "per": quant.weight_per},
                "activation": {**width, "observer": quant.activation_observer}}
    lines = quant.plan
    if lines is None:
        if options.network_Q.type != "SwinIR":
            raise UserError(f"quant:plan is missing; network_Q '{options.network_Q.type}' has no default plan")
        if not width:
            raise UserError("bit is missing; set the bit-width, for example --force_yml bit=4")
        lines = default_plan(options)
    one_sided = quant.one_sided_observer if quant.one_sided_observer is not None else quant.activation_observer
    return QuantPlan.parse([_resolve(line, one_sided) for line in lines], defaults)


def _resolve(entry: Any, one_sided: Any) -> Any:
    """Return a line in which ``observer: one_sided`` has become the observer that the options name."""
    if not isinstance(entry, Mapping):
        return entry
    return {key: one_sided if key == "observer" and value == ONE_SIDED else _resolve(value, one_sided)
            for key, value in entry.items()}


def default_plan(options: TDQuantOptions) -> list[dict[str, Any]]:
    """Return the lines for SwinIR: all Linears of the blocks and both attention products.

    Softmax maps and GELU outputs get ``one_sided_observer``, if there is one.

    Source: 2DQuant specification 1.2.
    """
    quant = options.quant
    one_sided = {"observer": ONE_SIDED}
    plain: dict[str, Any] = {"weight": {}, "activation": {}}
    qkv = {**plain, "split_out": 3} if quant.qkv_separation else plain
    lines: list[dict[str, Any]] = [
        {"*.attn.qkv": qkv},
        {"*.attn.proj": plain},
        {"*.mlp.fc1": plain},
        {"*.mlp.fc2": {"weight": {}, "activation": one_sided}},
        {"*.attn.attention_map": {"activation": one_sided}},
        {"*.attn.query": {"activation": {}}},
        {"*.attn.key": {"activation": {}}},
        {"*.attn.value": {"activation": {}}},
    ]
    if quant.quant_conv:
        lines.append({"layers.*.conv": plain})
    return lines


def mixed_plan(options: TDQuantOptions, bits: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the lines of the options' plan with a width of its own for each layer; products keep theirs.

    Args:
        options: Typed options.
        bits: Name of every layer whose weight the plan quantizes -> width of its weight and input.
    """
    lines, plan = options.quant.plan or default_plan(options), plan_of(options)
    layers, replaced = [], set()
    for name, width in bits.items():
        found = plan.recipe_for(name)
        assert found is not None
        replaced.add(found[0])
        recipe = next(iter(lines[found[0]].values()))
        widths = {part: {**recipe[part], "bits": width} for part in ("weight", "activation") if part in recipe}
        layers.append({name: {**recipe, **widths}})
    return layers + [line for index, line in enumerate(lines) if index not in replaced]


def feature_taps(options: TDQuantOptions, network: nn.Module) -> list[str]:
    """Return the names of the modules whose outputs the distillation matches.

    Source: 2DQuant specification 4.2.
    """
    quant = options.quant
    patterns = quant.feature_taps
    if patterns is None:
        patterns = ["layers.*.residual_group.blocks.*" if quant.hook_per_block else "layers.*.residual_group"]
    return match_modules(inner_network(network), patterns)
