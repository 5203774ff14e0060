"""``sensitivity``: what few bits cost each layer, and a plan of mixed widths that ``train.py`` takes."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from basicsr_quant.errors import UserError
from basicsr_quant.options.load import load_options
from basicsr_quant.options.methods.tdquant import TDQuantOptions
from basicsr_quant.report.plots import new_figure
from basicsr_quant.report.sensitivity import measure, summary, write

logger = logging.getLogger("basicsr_quant")
WIDTHS = range(1, 9)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("sensitivity", help="loss per layer at few bits, and a mixed-precision plan")
    parser.add_argument("-opt", required=True, help="option file of a TDQuantModel training")
    parser.add_argument("--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="override options")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], choices=WIDTHS, metavar="B",
                        help="widths to choose from (default: 2 3 4)")
    parser.add_argument("--budget", type=int, metavar="BYTES",
                        help="of the packed network; default: what it takes with `bit` everywhere")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, choose, write.

    Raises:
        UserError: The file is for another method, or see :func:`measure`.
    """
    options = load_options(arguments.opt, arguments.force_yml, is_train=True)
    if not isinstance(options, TDQuantOptions):
        raise UserError(f"sensitivity: '{arguments.opt}' has model_type {options.model_type}; a TDQuantModel file is "
                        "needed")
    new_figure(1, 1)
    found = measure(options, arguments.bits, arguments.budget)
    path = write(found, arguments.output)
    sys.stdout.write("\n".join(summary(found)) + "\n")
    logger.info("wrote '%s'; train it by: python train.py -opt %s", arguments.output, path)
