"""A table as Markdown and CSV: ours, the paper's, the difference."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
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


def rows(run: TableRun, metrics: tuple[str, ...] = ("psnr", "ssim")) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table; cells that were not run say so.

    Cells that differ only in the label ``average`` of the table become one row: the mean, the standard deviation
    (n - 1) of the first metric, and their number.
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
        line += [_entry(group[0][0], results, dataset, metrics, published) for dataset in datasets]
        minutes = f"{np.mean([result['train_minutes'] for result in results]):.1f}" if results else MISSING
        lines.append([*line, *([str(len(results))] if average else []), minutes])
    return head, lines


def _entry(cell: Cell, results: Sequence[dict[str, Any]], dataset: str, metrics: tuple[str, ...],
           published: list[dict[str, str]]) -> str:
    """Return the text of one row and data set."""
    measured = [result["metrics"][dataset] for result in results if dataset in result["metrics"]]
    if not measured:
        return ""
    known = [name for name in metrics if name in measured[0]]
    mean = {name: float(np.mean([entry[name] for entry in measured])) for name in known}
    texts = [f"{mean[name]:.2f}" if name == "psnr" else f"{mean[name]:.4f}" for name in known]
    if len(measured) > 1:
        texts[0] += f" ± {np.std([entry[known[0]] for entry in measured], ddof=1):.3f}"
    text = " / ".join(texts)
    for row in published if cell.published else []:
        wanted = {"dataset": dataset, **{key: str(value) for key, value in cell.published.items()}}
        if row["psnr"] and all(row[key] == value for key, value in wanted.items()):
            return f"{text} (paper {row['psnr']}, {mean['psnr'] - float(row['psnr']):+.2f})"
    return text


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
