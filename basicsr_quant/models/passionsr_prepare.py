"""OSEDiff's pipeline prepared for PassionSR: the plan that the options describe, and the parts that stages work on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from basicsr_quant.archs.osediff import concat_splits
from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.archs.published.passionsr import Component
from basicsr_quant.errors import UserError
from basicsr_quant.models.passionsr_plan import default_grid, default_plan, key_tokens_of
from basicsr_quant.options.effective import plain
from basicsr_quant.options.methods.passionsr import PassionSROptions
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare


def components_of(options: PassionSROptions) -> tuple[Component, ...]:
    """Return the networks that are quantized."""
    return ("unet",) if options.quant.only_unet else ("unet", "vae")


def plan_of(options: PassionSROptions, pipeline: OSEDiff) -> QuantPlan:
    """Return the plan: ``quant:plan``, or that of the method, names with ``unet.`` or ``vae.`` in front.

    Args:
        options: Typed options.
        pipeline: In full precision.

    Raises:
        UserError: A line is wrong.
    """
    lines = options.quant.plan
    if lines is None:
        lines = [line for component in components_of(options) for line in _method_lines(options, pipeline, component)]
    parsed = [QuantPlan.parse([line], _defaults(options, line)).lines[0] for line in lines]
    plan = QuantPlan(parsed)
    if plan.has_operations:
        raise UserError("quant:plan: of operations only those of attentions are known here; write 'op:attention NAME'")
    return plan


def structure_of(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of a plan without observers, which matter to calibration only."""
    def without(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: without(item) for key, item in value.items() if key != "observer"}

    return [without(line) for line in lines]


def prepare_pipeline(pipeline: OSEDiff, plan: QuantPlan) -> OSEDiff:
    """Quantize a pipeline in place."""
    splits = {f"unet.{name}": channel for name, channel in concat_splits(pipeline.unet).items()}
    prepare(pipeline, plan, concat_splits=splits)
    return pipeline


def teacher_of(pipeline: OSEDiff) -> OSEDiff:
    """Return a copy of a pipeline, still in full precision, that has the very same parameters.

    Both nets then need the memory of one; the weights under the quantization never change.
    """
    shared = [*pipeline.parameters(), *pipeline.buffers()]
    return copy.deepcopy(pipeline, {id(tensor): tensor for tensor in shared})


def part_of(pipeline: OSEDiff, component: str) -> nn.Module:
    """Return the modules of ``encoder``, ``unet`` or ``decoder`` as one module; they stay where they are.

    Args:
        pipeline: Prepared.
        component: One of these, or ``all`` for the pipeline itself.
    """
    if component == "all":
        return pipeline
    vae = pipeline.vae
    if component == "unet":
        unet: nn.Module = pipeline.unet
        return unet
    return nn.ModuleDict({"encoder": vae.encoder, "quant_conv": vae.quant_conv} if component == "encoder" else
                         {"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})


def _bits(options: PassionSROptions, component: Component) -> tuple[int, int]:
    quant = options.quant
    part = getattr(quant, component)
    return part.weight_bits or quant.weight_bits, part.activation_bits or quant.activation_bits


def _method_lines(options: PassionSROptions, pipeline: OSEDiff, component: Component) -> list[dict[str, Any]]:
    quant = options.quant
    network = getattr(pipeline, component)
    let = plain(quant.let)
    key_tokens = None
    if component == "unet" and quant.smooth.map_value:
        side = options.pipeline.tiles.latent
        key_tokens = key_tokens_of(network, (side, side), pipeline.context.shape[1])
    weight_bits, activation_bits = _bits(options, component)
    lines = default_plan(
        component, network, weight_bits=weight_bits, activation_bits=activation_bits,
        split=getattr(quant, component).split, let=let if let.pop("enabled") else None, products=quant.products,
        smooth={"alpha": quant.smooth.alpha} if quant.smooth.query_key else None, key_tokens=key_tokens,
        zero_point_gradient=quant.zero_point_gradient, grid=quant.grid, weight_observer=quant.weight_observer,
        activation_observer=quant.activation_observer, product_observer=quant.product_observer)
    return [{_within(component, key): recipe for key, recipe in line.items()} for line in lines]


def _within(component: str, key: str) -> str:
    """Return the key of a line about a network as one about the pipeline."""
    operation, _, pattern = key.rpartition(" ")
    return f"{operation} {component}.{pattern}".strip()


def _defaults(options: PassionSROptions, line: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what tensors of a line get that do not say it themselves."""
    quant = options.quant
    pattern = str(next(iter(line), "")).rpartition(" ")[2]
    weight_bits, activation_bits = _bits(options, "vae" if pattern.startswith("vae") else "unet")
    grid = quant.grid or default_grid(quant.zero_point_gradient)
    return {"weight": {"bits": weight_bits, "grid": grid, "observer": quant.weight_observer, "per": "channel"},
            "activation": {"bits": activation_bits, "grid": grid, "observer": quant.activation_observer}}
