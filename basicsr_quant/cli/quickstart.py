"""``quickstart``: the main job on embedded photographs, in minutes."""

from __future__ import annotations

import argparse
import sys

from basicsr_quant.report.quickstart import RESULTS, quickstart, table


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("quickstart", help="quantize and test SwinIR-light on embedded photographs")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="options for every step, such as num_gpu=0")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Run it and print the table."""
    rows = quickstart(arguments.settings)
    sys.stdout.write(f"\n{table(rows)}\n\nImages and report.json are in {RESULTS}/\n")
