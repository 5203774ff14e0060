"""``pack``: a model as one small file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from basicsr_quant.archs.diffusion_unet import DiffusionUNet
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.deploy.container import read
from basicsr_quant.deploy.options import restored_options
from basicsr_quant.deploy.pack import Sizes, pack
from basicsr_quant.deploy.unpack import DTYPES
from basicsr_quant.engine.setup import seed_everything
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_bytes
from basicsr_quant.io.weights import file_digest
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import load_options
from basicsr_quant.options.types import Options
from basicsr_quant.quant.accounting import account
from basicsr_quant.quant.binary.accounting import account_step
from basicsr_quant.quant.conventions import BI_DIFFSR, HONEST, swinir_light_conventions
from basicsr_quant.registry import MODELS

COUNTED_SIDE = 64
SUFFIX = ".safetensors"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("pack", help="write a model as one file of low-bit codes")
    parser.add_argument("-opt", required=True, help="option file (test)")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="name.safetensors")
    parser.add_argument("--rest", choices=tuple(DTYPES), default="fp32", help="dtype of what is not quantized")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Pack, read the file back, and print its size beside that of the full-precision weights."""
    output: Path = arguments.output
    if output.suffix != SUFFIX:
        raise UserError(f"-o: '{output}' must end in {SUFFIX}")
    options = load_options(arguments.opt, arguments.force_yml, is_train=False)
    seed_everything(options.manual_seed)
    model: RestorationModel = MODELS.build(options.model_type, options, torch.device("cpu"))
    model.load_pretrained(training=False)
    model.prepare_testing()
    source = _source(options)
    data, sizes = pack(model, arguments.rest, None if source is None else file_digest(source))
    write_bytes(output, data)
    stored = restored_options(read(output).facts["options"], str(output))
    sys.stdout.write("\n".join(report(output, sizes, stored, source)) + "\n")


def report(output: Path, sizes: Sizes, options: Options, source: Path | None) -> list[str]:
    """Return what to print about a packed file."""
    on_disk = os.path.getsize(output)
    full, conventions = _conventions(options)
    lines = [
        f"{output}: {on_disk:,} bytes on disk = codes {sizes.codes:,} + bounds and scales {sizes.scales:,} + rest "
        f"{sizes.rest:,} + header {sizes.header:,}",
        f"all parameters in float32: {full:,} bytes ({full / on_disk:.3f}x the packed file)",
    ]
    if source is not None:
        lines.append(f"packed from '{source}': {os.path.getsize(source):,} bytes on disk")
    return lines + conventions


def _source(options: Options) -> Path | None:
    for key in ("pretrain_network_Q", "pretrain_network_g"):
        name = getattr(options.path, key, None)
        if name is not None:
            return Path(name)
    return None


def _conventions(options: Options) -> tuple[int, list[str]]:
    """Return bytes of all parameters in float32, and the papers' ways to count, which are not bytes on disk."""
    with torch.device("meta"):
        network = MODELS.get(options.model_type).skeleton(options)
        if isinstance(network, DiffusionUNet):
            step = account_step(network, (1, 3, COUNTED_SIDE, COUNTED_SIDE))
            parameters = BI_DIFFSR.parameters(step)
            full = step.account.total_parameters
            return 4 * full, [f"{BI_DIFFSR.name}: {parameters.total / 1e6:.3f} M of {full / 1e6:.3f} M parameters "
                              f"[{BI_DIFFSR.source}]"]
        counted = account(network, (1, 3, COUNTED_SIDE, COUNTED_SIDE))
    rules = [HONEST, *(swinir_light_conventions(options.scale) if isinstance(network, SwinIR) else ())]
    return counted.float_bytes, [f"{rule.name}: parameters {rule.parameter_ratio(counted):.3f}x smaller [{rule.source}]"
                                 for rule in rules]
