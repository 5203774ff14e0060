"""``export onnx``: a network as an ONNX graph of one input shape."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from basicsr_quant.cli.frozen import add_model_arguments, frozen_model
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_bytes
from basicsr_quant.io.weights import file_digest
from basicsr_quant.models.base import RestorationModel

SUFFIX = ".onnx"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    formats = subparsers.add_parser("export", help="write a model for other programs").add_subparsers(
        dest="format", required=True, metavar="FORMAT")
    parser = formats.add_parser("onnx", help="ONNX graph of one input shape, checked with onnxruntime")
    add_model_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="name.onnx")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"), help="LR pixels of an image")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time, 1 by default")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Export, check, write, and print what was checked."""
    from basicsr_quant.deploy.onnx.export import CHECKED_IMAGES, export
    from basicsr_quant.deploy.onnx.graph import OPSET
    from basicsr_quant.deploy.onnx.packages import onnx_package

    output: Path = arguments.output
    if output.suffix != SUFFIX:
        raise UserError(f"-o: '{output}' must end in {SUFFIX}")
    height, width = arguments.size
    if min(height, width, arguments.batch) < 1:
        raise UserError(f"--size and --batch must be positive, found {height} {width} and {arguments.batch}")
    runtime = onnx_package("onnxruntime")
    model = frozen_model(arguments.weights, arguments.opt, arguments.force_yml, torch.device("cpu"))
    options = model.options
    if type(model).restore is not RestorationModel.restore:
        raise UserError(f"{options.model_type} restores an image in more than one call of a network, which no "
                        "graph holds; run it by 'python -m basicsr_quant infer'")
    shape = (arguments.batch, 3, height, width)
    facts = {"model_type": options.model_type, "scale": str(options.scale)}
    if arguments.weights is not None:
        facts["source_sha256"] = file_digest(arguments.weights)
    data, agreement = export(model.network, options.scale, shape, facts)
    write_bytes(output, data)
    lines = [
        f"{output}: {len(data):,} bytes, opset {OPSET}; {arguments.batch} x 3 x {height} x {width} -> "
        f"{arguments.batch} x 3 x {options.scale * height} x {options.scale * width}, no other size",
        f"checked with onnxruntime {runtime.__version__} on {CHECKED_IMAGES} random inputs: {agreement.roundings} "
        f"rounded tensors equal to the bit, all between them within {agreement.error:.1e} of the largest value, the "
        f"output within {agreement.drift:.1e} of its standard deviation",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
