"""``infer``: restore the images of a folder with a packed model, or with a checkpoint and its option file."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from basicsr_quant.cli.frozen import add_model_arguments, frozen_model
from basicsr_quant.deploy.infer import images_in, restore_files
from basicsr_quant.deploy.runtimes.base import AUTO, runtime
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import MAX_PIXELS
from basicsr_quant.registry import RUNTIMES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("infer", help="restore images with a packed model or a checkpoint")
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="PATH", help="image, or folder of images")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where PNG files go")
    add_model_arguments(parser)
    parser.add_argument("--backend", choices=(AUTO, *RUNTIMES), default=AUTO, help="what executes the layers")
    parser.add_argument("--device", default=AUTO, help="cpu, cuda, cuda:1, ...; auto = a GPU if there is one")
    parser.add_argument("--tile", type=int, metavar="N", help="work in tiles of N x N LR pixels; 0 = whole images")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N",
                        help="refuse images with more pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="seed of random draws, in place of manual_seed")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Restore the images."""
    for name, value in (("--tile", arguments.tile), ("--seed", arguments.seed)):
        if value is not None and value < 0:
            raise UserError(f"{name} must not be negative, found {value}")
    if arguments.max_pixels < 1:
        raise UserError(f"--max-pixels must be positive, found {arguments.max_pixels}")
    if arguments.output.is_file():
        raise UserError(f"-o: '{arguments.output}' is a file; name a folder")
    images = images_in(arguments.input)
    device = _device(arguments.device)
    model = frozen_model(arguments.weights, arguments.opt, arguments.force_yml, device, arguments.seed, arguments.tile)
    if arguments.tile and not model.knows_tiles:
        raise UserError(f"--tile: {model.options.model_type} does not work in tiles of LR pixels; leave it out")
    network = runtime(arguments.backend, device).attach(model.network)
    began = time.monotonic()
    with torch.inference_mode():
        count = restore_files(model, network, images, arguments.output, arguments.max_pixels)
    sys.stdout.write(f"{count} images restored in {time.monotonic() - began:.1f} s: {arguments.output}\n")


def _device(name: str) -> torch.device:
    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: '{name}' is not here; choose cpu, or leave it out") from error
    return device
