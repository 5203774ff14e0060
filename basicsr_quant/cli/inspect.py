"""``inspect``: what a model holds and computes, without weights or data."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr_quant.archs.diffusion_unet import DiffusionUNet
from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.models.passionsr_plan import layer_rows
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.accounting import Account, LayerCount, account
from basicsr_quant.quant.binary.accounting import StepAccount, account_step
from basicsr_quant.quant.conventions import (
    BI_DIFFSR,
    HONEST,
    Convention,
    Parts,
    passionsr_conventions,
    swinir_light_conventions,
    transformation_parameters,
)
from basicsr_quant.registry import MODELS

PAPER_OUTPUT_SIDE = 512
PAPER_DIFFUSION_SIDE = 256
SIZE_MULTIPLE = 8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("inspect", help="per-layer table, parameters, operations and bytes")
    parser.add_argument("-opt", required=True, help="option file (train or test)")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options")
    parser.add_argument("--json", type=Path, help="write everything as JSON")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"),
                        help="LR size; default: what gives the paper's output, 512x512, of diffusion models 256x256")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table and write the JSON file."""
    options = load_options(arguments.opt, arguments.force_yml, is_train=False)
    if arguments.size is not None and min(arguments.size) < 1:
        raise UserError(f"--size: height and width must be positive, found {arguments.size[0]} {arguments.size[1]}")
    with torch.device("meta"):
        model = MODELS.get(options.model_type).skeleton(options)
        inspect = (_inspect_step if isinstance(model, DiffusionUNet) else
                   _inspect_pipeline if isinstance(model, OSEDiff) else _inspect_network)
        lines, content = inspect(model, options.scale, arguments.size)
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(content, indent=1))


def _inspect_network(model: nn.Module, scale: int, size: Sequence[int] | None) -> tuple[list[str], dict[str, Any]]:
    """Count a network that is called with an LR image."""
    side = PAPER_OUTPUT_SIDE // scale // SIZE_MULTIPLE * SIZE_MULTIPLE
    height, width = size or (side, side)
    counted = account(model, (1, 3, height, width))
    rules = [HONEST, *(swinir_light_conventions(scale) if isinstance(model, SwinIR) else ())]
    lines = [*_table(counted), "", *_summary(counted, rules, height, width)]
    return lines, _as_dict(counted, rules, height, width)


def _inspect_pipeline(model: OSEDiff, scale: int, size: Sequence[int] | None) -> tuple[list[str], dict[str, Any]]:
    """Count OSEDiff's pipeline, quantized or not; sides are rounded up to what its networks take."""
    side = PAPER_OUTPUT_SIDE // scale
    height, width = (math.ceil(side / model.window_multiple) * model.window_multiple for side in size or (side, side))
    counted = account(model, (1, 3, height, width))
    rows = [*layer_rows("unet", model.unet), *layer_rows("vae", model.vae)]
    rules = [HONEST, *(passionsr_conventions() if rows else ())]
    operands = sum(row["type"] == "Operand" for row in rows)
    lines = [*_table(counted), "", f"quantized: {len(rows) - operands} layers, {operands} operands of attentions",
             *_summary(counted, rules, height, width)]
    return lines, {**_as_dict(counted, rules, height, width), "rows": rows}


def _inspect_step(model: DiffusionUNet, scale: int, size: Sequence[int] | None) -> tuple[list[str], dict[str, Any]]:
    """Count one denoising step of a network that is called with an image of the output's size."""
    sides = [side * scale for side in size] if size else [PAPER_DIFFUSION_SIDE] * 2
    height, width = (math.ceil(side / model.window_multiple) * model.window_multiple for side in sides)
    counted = account_step(model, (1, 3, height, width))
    return [*_table(counted.account), "", *_step_summary(counted, height, width)], _step_dict(counted, height, width)


def _table(counted: Account) -> list[str]:
    head = ("layer", "kind", "weight", "W", "A", "parameters", "MACs")
    rows = [(layer.name, layer.kind, "x".join(map(str, layer.shape)), _bits(layer.weight_bits, layer),
             _bits(layer.activation_bits, layer), str(layer.parameters), f"{layer.macs:,}") for layer in counted.layers]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]]


def _bits(bits: int, layer: LayerCount) -> str:
    return "-" if layer.kind == "norm" else str(bits)


def _summary(counted: Account, rules: list[Convention], height: int, width: int) -> list[str]:
    added = transformation_parameters(counted)
    float_bytes = counted.float_bytes - 4 * added
    lines = [
        f"input {height}x{width}; parameters {counted.total_parameters - added:,}, of which quantized "
        f"{counted.quantized_parameters:,}; bounds {counted.bounds:,}"
        f"{f'; scales and offsets {added:,}' if added else ''}; MACs {counted.macs / 1e9:.3f} G",
        f"bytes: float32 {float_bytes:,}, packed (codes, bounds, rest in float32) {counted.packed_bytes:,} "
        f"({float_bytes / counted.packed_bytes:.3f}x smaller)",
    ]
    for rule in rules:
        full, quantized = rule.operations(counted)
        ratio = rule.parameter_ratio(counted)
        lines.append(f"{rule.name}: parameters {ratio:.3f}x{_change(ratio, added)}, operations {full / 1e9:.3f} G -> "
                     f"{quantized / 1e9:.3f} G ({full / quantized:.3f}x) [{rule.source}]")
    lines.append("Operation ratios are arithmetic (b/32 per quantized product), not measured speed.")
    return lines


def _change(ratio: float, shown: int) -> str:
    return f" ({1 / ratio - 1:+.1%})" if shown else ""


def _as_dict(counted: Account, rules: list[Convention], height: int, width: int) -> dict[str, Any]:
    return {
        "size": [height, width],
        "layers": [asdict(layer) for layer in counted.layers],
        "parameters": counted.total_parameters - transformation_parameters(counted),
        "quantized_parameters": counted.quantized_parameters,
        "bounds": counted.bounds,
        "transformations": transformation_parameters(counted),
        "macs": counted.macs,
        "float_bytes": counted.float_bytes - 4 * transformation_parameters(counted),
        "packed_bytes": counted.packed_bytes,
        "conventions": [{"name": rule.name, "source": rule.source, "parameter_ratio": rule.parameter_ratio(counted),
                         "operations": rule.operations(counted)} for rule in rules],
    }


def _step_summary(step: StepAccount, height: int, width: int) -> list[str]:
    counted = step.account
    parameters, operations = BI_DIFFSR.parameters(step), BI_DIFFSR.operations(step)
    return [
        f"image {height}x{width}, one denoising step; parameters {counted.total_parameters:,}, of which binary "
        f"{step.binary_parameters:,}; their scales {counted.bounds:,}",
        f"bytes: float32 {counted.float_bytes:,}, packed (binary weights as bits, their scales and the rest in float32)"
        f" {counted.packed_bytes:,} ({counted.float_bytes / counted.packed_bytes:.3f}x smaller)",
        f"MACs: {counted.macs / 1e9:.3f} G, of which binary {step.binary_macs / 1e9:.3f} G, full precision "
        f"{step.float_macs / 1e9:.3f} G ({step.float_macs / counted.macs:.1%})",
        f"{BI_DIFFSR.name}: parameters {_parts(parameters, 1e6, 'M')}, operations {_parts(operations, 1e9, 'G')} "
        f"[{BI_DIFFSR.source}]",
        "Operations are arithmetic, not measured speed; binary layers run in floating point here.",
    ]


def _parts(parts: Parts, unit: float, letter: str) -> str:
    return (f"{parts.total / unit:.3f} {letter} = {parts.full / unit:.3f} full precision + {parts.binary / unit:.3f} "
            f"binary ({parts.printed(unit):.2f} in its tables)")


def _step_dict(step: StepAccount, height: int, width: int) -> dict[str, Any]:
    counted = step.account
    parameters, operations = BI_DIFFSR.parameters(step), BI_DIFFSR.operations(step)
    return {
        "size": [height, width],
        "layers": [asdict(layer) for layer in counted.layers],
        "parameters": counted.total_parameters,
        "binary_parameters": step.binary_parameters,
        "scales": counted.bounds,
        "macs": counted.macs,
        "binary_macs": step.binary_macs,
        "full_precision_macs": step.float_macs,
        "float_bytes": counted.float_bytes,
        "packed_bytes": counted.packed_bytes,
        "conventions": [{
            "name": BI_DIFFSR.name, "source": BI_DIFFSR.source,
            "parameters": asdict(parameters), "printed_parameters_m": parameters.printed(1e6),
            "operations": asdict(operations), "printed_operations_g": operations.printed(1e9)}],
    }
