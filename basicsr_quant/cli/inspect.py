"""``inspect``: what a model holds and computes, without weights or data."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.accounting import Account, LayerCount, account
from basicsr_quant.quant.conventions import HONEST, Convention, swinir_light_conventions
from basicsr_quant.registry import MODELS

PAPER_OUTPUT_SIDE = 512
SIZE_MULTIPLE = 8


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("inspect", help="per-layer table, parameters, operations and bytes")
    parser.add_argument("-opt", required=True, help="option file (train or test)")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options")
    parser.add_argument("--json", type=Path, help="write everything as JSON")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"),
                        help="LR size; default: what gives a 512x512 output, as in the paper")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table and write the JSON file."""
    options = load_options(arguments.opt, arguments.force_yml, is_train=False)
    side = PAPER_OUTPUT_SIDE // options.scale // SIZE_MULTIPLE * SIZE_MULTIPLE
    height, width = arguments.size or (side, side)
    if min(height, width) < 1:
        raise UserError(f"--size: height and width must be positive, found {height} {width}")
    with torch.device("meta"):
        model = MODELS.get(options.model_type).skeleton(options)
        counted = account(model, (1, 3, height, width))
    rules = [HONEST, *(swinir_light_conventions(options.scale) if isinstance(model, SwinIR) else ())]
    sys.stdout.write("\n".join([*_table(counted), "", *_summary(counted, rules, height, width)]) + "\n")
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(_as_dict(counted, rules, height, width), indent=1))


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
    lines = [
        f"input {height}x{width}; parameters {counted.total_parameters:,}, of which quantized "
        f"{counted.quantized_parameters:,}; bounds {counted.bounds:,}; MACs {counted.macs / 1e9:.3f} G",
        f"bytes: float32 {counted.float_bytes:,}, packed (codes, bounds, rest in float32) {counted.packed_bytes:,} "
        f"({counted.float_bytes / counted.packed_bytes:.3f}x smaller)",
    ]
    for rule in rules:
        full, quantized = rule.operations(counted)
        lines.append(f"{rule.name}: parameters {rule.parameter_ratio(counted):.3f}x, operations {full / 1e9:.3f} G -> "
                     f"{quantized / 1e9:.3f} G ({full / quantized:.3f}x) [{rule.source}]")
    lines.append("Operation ratios are arithmetic (b/32 per quantized product), not measured speed.")
    return lines


def _as_dict(counted: Account, rules: list[Convention], height: int, width: int) -> dict[str, Any]:
    return {
        "size": [height, width],
        "layers": [asdict(layer) for layer in counted.layers],
        "parameters": counted.total_parameters,
        "quantized_parameters": counted.quantized_parameters,
        "bounds": counted.bounds,
        "macs": counted.macs,
        "float_bytes": counted.float_bytes,
        "packed_bytes": counted.packed_bytes,
        "conventions": [{"name": rule.name, "source": rule.source, "parameter_ratio": rule.parameter_ratio(counted),
                         "operations": rule.operations(counted)} for rule in rules],
    }
