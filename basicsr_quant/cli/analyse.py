"""``analyse``: what rounding costs each layer of a quantized model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr_quant.engine.experiment import results_folder
from basicsr_quant.errors import UserError
from basicsr_quant.options.load import load_options
from basicsr_quant.report.analysis import run_analysis, write_analysis, write_tensorboard

IMAGES = 4
SIZE = 64
SHOWN = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("analyse", help="what rounding costs each layer, ranges, bounds and histograms")
    parser.add_argument("-opt", required=True, help="option file (test), or the one that test.py left in results/NAME")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N",
                        help=f"images of the first test set (default: {IMAGES})")
    parser.add_argument("--size", type=int, default=SIZE, metavar="N",
                        help=f"side of their central crops in LR pixels; 0 = whole images, which may need much memory, "
                             f"as all outputs of one image are kept (default: {SIZE})")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Analyse, write ``results/<name>/analysis.json`` and TensorBoard files, and print the layers that lose most.

    Raises:
        UserError: A number is out of range.
    """
    if arguments.images < 1 or arguments.size < 0:
        raise UserError("--images must be at least 1 and --size at least 0, found "
                        f"--images {arguments.images} --size {arguments.size}")
    options = load_options(arguments.opt, arguments.force_yml, is_train=False)
    content = run_analysis(options, arguments.images, arguments.size)
    path = write_analysis(content, results_folder(options))
    board = Path(options.path.tb_root) / f"{options.name}_analysis"
    write_tensorboard(content, board)
    sys.stdout.write(f"{summary(content)}\n\nAll layers are in {path} and, for TensorBoard, in {board}\n")


def summary(content: Mapping[str, Any]) -> str:
    """Return the SQNR of the output and the layers with the lowest of their own."""
    layers = [layer for layer in content["layers"] if layer["teacher_forced"] is not None]
    worst = sorted(layers, key=lambda layer: layer["teacher_forced"])[:SHOWN]
    width = max((len(layer["name"]) for layer in worst), default=0)
    lines = [f"{content['data']}; {len(content['layers'])} layers and operands; SQNR of the output "
             f"{_decibels(content['output'])}", "", "SQNR in dB, by itself and with everything quantized:"]
    lines += [f"{layer['name']:{width}}  {_decibels(layer['teacher_forced']):>8}  {_decibels(layer['cumulative']):>8}"
              for layer in worst]
    return "\n".join(lines)


def _decibels(value: float | None) -> str:
    return "no error" if value is None else f"{value:.2f}"
