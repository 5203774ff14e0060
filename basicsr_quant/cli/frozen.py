"""The model that the verbs ``infer`` and ``export`` are given: a packed file, or a checkpoint with its option file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from basicsr_quant.deploy.container import is_packed
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.options import changed
from basicsr_quant.deploy.unpack import open_model
from basicsr_quant.engine.setup import seed_everything
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import load_options
from basicsr_quant.registry import MODELS

logger = logging.getLogger("basicsr_quant")

WEIGHTS = {"SRModel": "pretrain_network_g", "BIDiffSRModel": "pretrain_network_g",
           "TDQuantModel": "pretrain_network_Q"}
"""model_type -> key of ``path`` that names the weights."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``-w``, ``-opt`` and ``--force_yml``."""
    parser.add_argument("-w", "--weights", type=Path, metavar="FILE", help="packed model, or checkpoint with -opt")
    parser.add_argument("-opt", help="option file of a checkpoint that is not packed")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options of -opt")


def frozen_model(weights: Path | None, opt: str | None, force: list[str], device: torch.device,
                 seed: int | None = None, tile: int | None = None) -> RestorationModel:
    """Return a model with a frozen network.

    Args:
        weights: Packed model, or checkpoint.
        opt: Option file of a checkpoint.
        force: Overrides of the option file.
        device: Where the network shall be.
        seed: In place of ``manual_seed``.
        tile: In place of ``val:tile``, in LR pixels.

    Raises:
        UserError: A file is missing, or the two do not belong together.
    """
    if opt is None:
        if weights is None:
            raise UserError("-w is missing; name a packed model, or a checkpoint and its option file by -opt")
        if weights.is_file() and not is_packed(weights):
            raise UserError(f"'{weights}' is no packed model; give its option file by -opt, or pack it first by "
                            "'python -m basicsr_quant pack'")
        model, _ = open_model(weights, device, seed, tile)
        seed_everything(model.options.manual_seed)
        logger.info("%s x%d from '%s'", model.options.model_type, model.options.scale, weights)
        return model
    if weights is not None and is_packed(weights):
        raise UserError(f"'{weights}' is packed and brings its options; leave out -opt")
    options = load_options(opt, force, is_train=False)
    if weights is not None:
        key = WEIGHTS.get(options.model_type)
        if key is None:
            raise UserError(f"-w: the weights of {options.model_type} are several files; name them by --force_yml")
        options = load_options(opt, [*force, f"path:{key}={weights}"], is_train=False)
    options = changed(options, seed, tile)
    seed_everything(options.manual_seed)
    model = MODELS.build(options.model_type, options, device)
    model.load_pretrained(training=False)
    model.prepare_testing()
    freeze(model.network)
    return model
