"""``report``: a static page of the results of some runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from basicsr_quant.errors import UserError
from basicsr_quant.report.page.build import build_page
from basicsr_quant.report.page.runs import read_runs

IMAGES = 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("report", help="a page with images side by side, table, plots and layers")
    parser.add_argument("results", type=Path, nargs="+", metavar="FOLDER",
                        help="folders that test.py wrote (results/NAME), or a folder of such folders")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER",
                        help="where index.html and its images go; an earlier page there is replaced")
    parser.add_argument("--title", default="Super-resolution results", help="heading of the page")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N",
                        help=f"images of each data set at most (default: {IMAGES})")
    parser.add_argument("--trainings", type=Path, nargs="+", default=[], metavar="FOLDER",
                        help="also the curves of these trainings (experiments/NAME or tb_logger/NAME); those that made "
                             "the runs' weights are found")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Make the page.

    Raises:
        UserError: A folder holds no results, or the page cannot be written.
    """
    if arguments.images < 1:
        raise UserError(f"--images must be at least 1, found {arguments.images}")
    runs = read_runs(arguments.results)
    index = build_page(runs, arguments.output, arguments.title, arguments.images, arguments.trainings)
    sys.stdout.write(f"{len(runs)} runs: open {index} in a browser\n")
