"""``calibration-data``: write the calibration patches of an option file to a file of their own."""

from __future__ import annotations

import argparse
import logging

from basicsr_quant.data.build import build_dataset
from basicsr_quant.data.calibration import calibration_patches, save_calibration
from basicsr_quant.engine.datasets import training_set
from basicsr_quant.errors import UserError
from basicsr_quant.options.load import load_options
from basicsr_quant.options.methods.tdquant import TDQuantOptions

logger = logging.getLogger("basicsr_quant")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("calibration-data", help="write the calibration patches of an option file")
    parser.add_argument("-opt", required=True, help="option file with cali_data_save_path and datasets:train")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Sample and write.

    Raises:
        UserError: The file has no ``cali_data_save_path`` or no training set.
    """
    options = load_options(arguments.opt, arguments.force_yml, is_train=True)
    if not isinstance(options, TDQuantOptions) or options.cali_data_save_path is None:
        raise UserError("cali_data_save_path is missing; it says where to write the calibration file")
    key, data = training_set(options)
    wanted = options.quant.calibration
    dataset = build_dataset(data, options.scale, "train", options.manual_seed, key)
    patches = calibration_patches(dataset, wanted.patches, wanted.patch_size, wanted.seed)
    save_calibration(options.cali_data_save_path, patches)
    logger.info("wrote %d patches of %dx%d to '%s' (digest %s)", len(patches.lq), wanted.patch_size, wanted.patch_size,
                options.cali_data_save_path, patches.digest[:16])
