"""A table as Markdown and CSV: ours, the paper's, the difference."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from basicsr_quant.report.cells import Cell
from basicsr_quant.report.table import TableRun

MISSING = "not run"


def published_numbers(name: str | None) -> list[dict[str, str]]:
    """Return the rows of a CSV of published numbers that the package holds."""
    if name is None:
        return []
    text = (resources.files("basicsr_quant.report") / "published" / name).read_text()
    return list(csv.DictReader(io.StringIO(text)))


def rows(run: TableRun) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table; cells that were not run say so.

    Cells that differ only in the label ``average`` of the table become one row: mean, standard deviation (n - 1) and
    number.
    """
    published = published_numbers(run.table.published)
    average = run.table.average
    groups: dict[tuple[tuple[str, str], ...], list[tuple[Cell, dict[str, Any] | None]]] = {}
    for cell in run.cells:
        key = tuple((name, str(value)) for name, value in cell.labels.items() if name != average)
        groups.setdefault(key, []).append((cell, run.result(cell)))
    labels = list(dict.fromkeys(name for key in groups for name, _ in key))
    found = [result for group in groups.values() for _, result in group if result]
    datasets = list(dict.fromkeys(name for result in found for name in result["metrics"]))
    head = [*labels, *datasets, *(["runs"] if average else []), "training minutes"]
    lines = []
    for key, group in groups.items():
        results = [result for _, result in group if result]
        line = [dict(key).get(name, "") for name in labels]
        line += [_entry(group[0][0], results, dataset, run.table.metrics, published) for dataset in datasets]
        minutes = f"{np.mean([result['train_minutes'] for result in results]):.1f}" if results else MISSING
        lines.append([*line, *([str(len(results))] if average else []), minutes])
    return head, lines


def _entry(cell: Cell, results: Sequence[dict[str, Any]], dataset: str, metrics: Mapping[str, int],
           published: list[dict[str, str]]) -> str:
    """Return the text of one row and data set: the metrics that were measured, separated by slashes."""
    measured = [result["metrics"][dataset] for result in results if dataset in result["metrics"]]
    if not measured:
        return ""
    known = [name for name in metrics if name in measured[0]]
    text = " / ".join(_number([entry[name] for entry in measured], metrics[name]) for name in known)
    for row in published if cell.published else []:
        wanted = {"dataset": dataset, **{key: str(value) for key, value in cell.published.items()}}
        if row["psnr"] and all(row[key] == value for key, value in wanted.items()):
            own = float(np.mean([entry["psnr"] for entry in measured]))
            return f"{text} (paper {row['psnr']}, {own - float(row['psnr']):+.2f})"
    return text


def _number(values: Sequence[float], decimals: int) -> str:
    """Return mean and, of several values, standard deviation, which has a decimal more up to four."""
    spread = f" ± {np.std(values, ddof=1):.{max(decimals, min(decimals + 1, 4))}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"


def markdown(run: TableRun) -> str:
    """Return a heading, the protocol and the table."""
    head, lines = rows(run)
    table = [head, ["---"] * len(head), *lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in table)
    return f"## {run.table.title}\n\n{run.protocol}\n\n{body}\n"


def as_csv(run: TableRun) -> str:
    """Return the same as CSV."""
    head, lines = rows(run)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()
