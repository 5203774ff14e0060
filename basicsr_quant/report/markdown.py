"""A table as Markdown and CSV: ours, the paper's, the difference, and what a cell that was not run lacks."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from basicsr_quant.options.load import load_options
from basicsr_quant.options.types import datasets_of_phase
from basicsr_quant.report.cells import Cell, TableFile
from basicsr_quant.report.inputs import missing
from basicsr_quant.report.table import TableRun

MISSING = "not run"
Published = list[dict[str, str]]
Tell = Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class _Row:
    """Cells that differ only in the label ``average`` of the table, and what is known of them."""

    labels: dict[str, str]
    cells: list[Cell]
    results: list[dict[str, Any]]

    def values(self, dataset: str, metric: str) -> list[float]:
        """Return a metric on a data set of every cell that has it."""
        measured = [result["metrics"].get(dataset, {}) for result in self.results]
        return [entry[metric] for entry in measured if metric in entry]


def published_numbers(name: str | None) -> Published:
    """Return the rows of a CSV of published numbers that the package holds."""
    if name is None:
        return []
    text = (resources.files("basicsr_quant.report") / "published" / name).read_text()
    return list(csv.DictReader(io.StringIO(text)))


def rows(run: TableRun, tell: Tell) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table; cells that were not run say so.

    Cells that differ only in the label ``average`` of the table become one row: mean, standard deviation (n - 1) and
    number.

    Args:
        run: The cells.
        tell: Takes the inputs that a cell lacks and returns what is said of them.
    """
    table, average = run.table, run.table.average
    published = published_numbers(table.published)
    groups = _grouped(run)
    labels = list(dict.fromkeys(name for row in groups for name in row.labels))
    datasets, metrics = _datasets(run, groups, published), list(table.metrics)
    last = [*(["runs"] if average else []), "training minutes"]
    by_dataset = table.lines == "dataset"
    head = [*labels, *(["data", *metrics] if by_dataset else datasets), *last]
    lines = []
    for row in groups:
        first = [row.labels.get(name, "") for name in labels]
        end = [*([str(len(row.results))] if average else []), _minutes(row, tell)]
        if by_dataset:
            lines += [[*first, dataset, *(_entry(row, dataset, [metric], table, published) for metric in metrics), *end]
                      for dataset in datasets]
        else:
            lines.append([*first, *(_entry(row, dataset, metrics, table, published) for dataset in datasets), *end])
    return head, lines


def _grouped(run: TableRun) -> list[_Row]:
    found: dict[tuple[tuple[str, str], ...], _Row] = {}
    for cell in run.cells:
        key = tuple((name, str(value)) for name, value in cell.labels.items() if name != run.table.average)
        row = found.setdefault(key, _Row(dict(key), [], []))
        row.cells.append(cell)
        result = run.result(cell)
        if result is not None:
            row.results.append(result)
    return list(found.values())


def _datasets(run: TableRun, groups: Sequence[_Row], published: Published) -> list[str]:
    """Return the measured data sets; if there are none, or they are lines, those of the options that are published."""
    measured = dict.fromkeys(name for row in groups for result in row.results for name in result["metrics"])
    if measured and run.table.lines == "cell":
        return list(measured)
    known = {row["dataset"] for row in published}
    tests = dict.fromkeys((cell.test.opt, *cell.test.force) for cell in run.cells)
    named = dict.fromkeys(data.name for opt, *force in tests
                          for _, data in datasets_of_phase(load_options(opt, force, is_train=False), "test")
                          if data.name in known and (not run.datasets or data.name in run.datasets))
    return list(named | measured)


def _minutes(row: _Row, tell: Tell) -> str:
    """Return the minutes of training, at least so many if it was interrupted, or what is missing."""
    if not row.results:
        absent = dict.fromkeys(name for cell in row.cells for name in missing(cell))
        return f"{MISSING}{f': {tell(list(absent))}' if absent else ''}"
    at_least = "≥ " if any(result.get("resumed") for result in row.results) else ""
    return f"{at_least}{np.mean([result['train_minutes'] for result in row.results]):.1f}"


def _entry(row: _Row, dataset: str, metrics: Sequence[str], table: TableFile, published: Published) -> str:
    """Return the text of one row and data set: the metrics that were measured, separated by slashes."""
    measured = {name: values for name in metrics if (values := row.values(dataset, name))}
    text = " / ".join(_number(values, table.metrics[name]) for name, values in measured.items())
    paper = _paper(row.cells[0], dataset, published)
    theirs = {name: paper[name] for name in metrics if paper.get(name)}
    if not measured:
        return f"(paper {' / '.join(theirs.values())})" if theirs else ""
    first = metrics[0]
    if first not in measured or first not in theirs:
        return text
    difference = np.mean(measured[first]) - float(theirs[first])
    return f"{text} (paper {theirs[first]}, {difference:+.{table.metrics[first]}f})"


def _paper(cell: Cell, dataset: str, published: Published) -> dict[str, str]:
    """Return the published numbers of a cell."""
    wanted = {"dataset": dataset, **{key: str(value) for key, value in cell.published.items()}}
    found = (row for row in published if cell.published and all(row[key] == value for key, value in wanted.items()))
    return next(found, {})


def _number(values: Sequence[float], decimals: int) -> str:
    """Return mean and, of several values, standard deviation, which has a decimal more up to four."""
    spread = f" ± {np.std(values, ddof=1):.{max(decimals, min(decimals + 1, 4))}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"


def markdown(run: TableRun) -> str:
    """Return a heading, the protocol, the table, and a list of what cells that were not run lack."""
    absent: dict[str, int] = {}

    def numbered(names: Sequence[str]) -> str:
        numbers = [absent.setdefault(name, len(absent) + 1) for name in names]
        return f"lacks {' '.join(map(str, sorted(numbers)))}"

    head, lines = rows(run, numbered)
    table = [head, ["---"] * len(head), *lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in table)
    notes = "".join(f"{number}. {name}\n" for name, number in absent.items())
    return f"## {run.table.title}\n\n{run.protocol}\n\n{body}\n" + (f"\nMissing:\n\n{notes}" if absent else "")


def as_csv(run: TableRun) -> str:
    """Return the same as CSV."""
    head, lines = rows(run, "; ".join)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()
