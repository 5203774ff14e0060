"""A table as Markdown and CSV: ours, the paper's, the difference."""

from __future__ import annotations

import csv
import io
from importlib import resources
from typing import Any

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
    """Return head and rows of a table; cells that were not run say so."""
    published = published_numbers(run.table.published)
    results = [(cell, run.result(cell)) for cell in run.cells]
    labels = list(dict.fromkeys(key for cell in run.cells for key in cell.labels))
    datasets = list(dict.fromkeys(name for _, result in results if result for name in result["metrics"]))
    head = [*labels, *datasets, "minutes"]
    lines = []
    for cell, result in results:
        line = [str(cell.labels.get(key, "")) for key in labels]
        line += [_entry(cell, result, dataset, metrics, published) for dataset in datasets]
        lines.append([*line, f"{result['minutes']:.1f}" if result else MISSING])
    return head, lines


def _entry(cell: Cell, result: dict[str, Any] | None, dataset: str, metrics: tuple[str, ...],
           published: list[dict[str, str]]) -> str:
    if result is None or dataset not in result["metrics"]:
        return ""
    own = result["metrics"][dataset]
    text = " / ".join(f"{own[name]:.2f}" if name == "psnr" else f"{own[name]:.4f}" for name in metrics if name in own)
    for row in published if cell.published else []:
        wanted = {"dataset": dataset, **{key: str(value) for key, value in cell.published.items()}}
        if row["psnr"] and all(row[key] == value for key, value in wanted.items()):
            return f"{text} (paper {row['psnr']}, {own['psnr'] - float(row['psnr']):+.2f})"
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
