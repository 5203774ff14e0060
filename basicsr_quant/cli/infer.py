"""``infer``: restore the images of a folder with a packed model, or with a checkpoint and its option file."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

from basicsr_quant.deploy.container import is_packed
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.infer import images_in, restore_files
from basicsr_quant.deploy.options import changed
from basicsr_quant.deploy.runtimes.base import AUTO, runtime
from basicsr_quant.deploy.unpack import open_model
from basicsr_quant.engine.setup import seed_everything
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import load_options
from basicsr_quant.registry import MODELS, RUNTIMES

logger = logging.getLogger("basicsr_quant")

WEIGHTS = {"SRModel": "pretrain_network_g", "BIDiffSRModel": "pretrain_network_g",
           "TDQuantModel": "pretrain_network_Q"}
"""model_type -> key of ``path`` that names the weights."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("infer", help="restore images with a packed model or a checkpoint")
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="PATH", help="image, or folder of images")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where PNG files go")
    parser.add_argument("-w", "--weights", type=Path, metavar="FILE", help="packed model, or checkpoint with -opt")
    parser.add_argument("-opt", help="option file of a checkpoint that is not packed")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options of -opt")
    parser.add_argument("--backend", choices=(AUTO, *RUNTIMES), default=AUTO, help="what executes the layers")
    parser.add_argument("--device", default=AUTO, help="cpu, cuda, cuda:1, ...; auto = a GPU if there is one")
    parser.add_argument("--tile", type=int, metavar="N", help="work in tiles of N x N LR pixels; 0 = whole images")
    parser.add_argument("--seed", type=int, help="seed of random draws, in place of manual_seed")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Restore the images."""
    for name, value in (("--tile", arguments.tile), ("--seed", arguments.seed)):
        if value is not None and value < 0:
            raise UserError(f"{name} must not be negative, found {value}")
    if arguments.output.is_file():
        raise UserError(f"-o: '{arguments.output}' is a file; name a folder")
    images = images_in(arguments.input)
    device = _device(arguments.device)
    model = _opened(arguments, device)
    if arguments.tile and not model.knows_tiles:
        raise UserError(f"--tile: {model.options.model_type} does not work in tiles of LR pixels; leave it out")
    network = runtime(arguments.backend).attach(model.network)
    began = time.monotonic()
    with torch.inference_mode():
        count = restore_files(model, network, images, arguments.output)
    sys.stdout.write(f"{count} images restored in {time.monotonic() - began:.1f} s: {arguments.output}\n")


def _opened(arguments: argparse.Namespace, device: torch.device) -> RestorationModel:
    """Return a model with a frozen network."""
    weights: Path | None = arguments.weights
    if arguments.opt is None:
        if weights is None:
            raise UserError("-w is missing; name a packed model, or a checkpoint and its option file by -opt")
        if weights.is_file() and not is_packed(weights):
            raise UserError(f"'{weights}' is no packed model; give its option file by -opt, or pack it first by "
                            "'python -m basicsr_quant pack'")
        model, packed = open_model(weights, device, arguments.seed, arguments.tile)
        seed_everything(model.options.manual_seed)
        logger.info("%s x%d from '%s'", model.options.model_type, model.options.scale, weights)
        return model
    if weights is not None and is_packed(weights):
        raise UserError(f"'{weights}' is packed and brings its options; leave out -opt")
    options = load_options(arguments.opt, arguments.force_yml, is_train=False)
    if weights is not None:
        key = WEIGHTS.get(options.model_type)
        if key is None:
            raise UserError(f"-w: the weights of {options.model_type} are several files; name them by --force_yml")
        options = load_options(arguments.opt, [*arguments.force_yml, f"path:{key}={weights}"], is_train=False)
    options = changed(options, arguments.seed, arguments.tile)
    seed_everything(options.manual_seed)
    model = MODELS.build(options.model_type, options, device)
    model.load_pretrained(training=False)
    model.prepare_testing()
    freeze(model.network)
    return model


def _device(name: str) -> torch.device:
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: '{name}' is not here; choose cpu, or leave it out") from error
    return device
