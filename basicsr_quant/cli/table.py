"""``table``: fill, show and plot the tables under ``options/tables``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.registry import nearest
from basicsr_quant.report.cells import expand, protocol_of, read_table
from basicsr_quant.report.curves import draw, training_curves
from basicsr_quant.report.markdown import as_csv, markdown
from basicsr_quant.report.table import TableRun, select

TABLES = Path("options/tables")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("table", help="run the cells of a table, show what is known of them, or plot it")
    parser.add_argument("action", choices=("run", "show", "curves"))
    parser.add_argument("name", help="name of a file in options/tables, or its path")
    parser.add_argument("--cells", default="", help="only cells with these labels, for example method=DOBI,bit=4")
    parser.add_argument("--datasets", nargs="+", default=[], help="only these test sets")
    parser.add_argument("--budget", help="a budget of the table file")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the table file")
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    parser.add_argument("--csv", type=Path, help="write it as CSV")
    parser.add_argument("--metric", default="psnr", help="curves: the validation metric to plot")
    parser.add_argument("--png", type=Path, help="curves: the file to write")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the cells if asked to, then print the table.

    Raises:
        UserError: Some cells failed; the others were run and the table is printed.
    """
    table = read_table(_path(arguments.name))
    settings = _pairs(arguments.set, "--set")
    if arguments.budget is not None:
        if arguments.budget not in table.budgets:
            raise UserError(f"--budget: '{arguments.budget}' is unknown; known: {', '.join(table.budgets)}")
        settings = {**{key: str(value) for key, value in table.budgets[arguments.budget].items()}, **settings}
    wanted = _pairs(arguments.cells.split(",") if arguments.cells else [], "--cells")
    chosen = select(expand(table, settings), wanted)
    cells = TableRun(table, chosen, protocol_of(table, settings), arguments.datasets)
    if arguments.action == "curves":
        if arguments.png is None:
            raise UserError("table curves: --png is missing; name the file to write")
        draw(training_curves(cells, arguments.metric), arguments.metric, table.title, arguments.png)
        return
    failures = cells.run() if arguments.action == "run" else []
    text = markdown(cells)
    sys.stdout.write(text)
    if arguments.markdown is not None:
        write_text(arguments.markdown, text)
    if arguments.csv is not None:
        write_text(arguments.csv, as_csv(cells))
    if failures:
        raise UserError(f"{len(failures)} of {len(cells.cells)} cells failed; first: {failures[0]}")


def _path(name: str) -> Path:
    path = Path(name) if name.endswith(".yml") else TABLES / f"{name}.yml"
    if not path.is_file():
        known = [file.stem for file in TABLES.glob("*.yml")]
        raise UserError(f"table '{name}' does not exist{nearest(name, known)}; known: {', '.join(sorted(known))}")
    return path


def _pairs(items: Sequence[str], where: str) -> dict[str, str]:
    for item in items:
        if "=" not in item:
            raise UserError(f"{where}: expected key=value, found '{item}'")
    return dict(item.split("=", 1) for item in items)
