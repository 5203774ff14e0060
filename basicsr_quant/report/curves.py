"""Curves of a table's trainings: a validation metric over the iterations, mean and spread over seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from basicsr_quant.errors import UserError
from basicsr_quant.report.plots import new_figure, write_png
from basicsr_quant.report.table import TableRun
from basicsr_quant.report.training import Curve, recorded_scalars


def training_curves(run: TableRun, metric: str) -> dict[str, list[Curve]]:
    """Read a metric of the first validation set from the TensorBoard files of all trainings that were run.

    Args:
        run: Cells and where their results are.
        metric: Such as ``psnr``.

    Returns:
        Row of the table (labels other than the one that is averaged over) -> iteration -> value, for each run.

    Raises:
        UserError: No training recorded the metric.
    """
    found: dict[str, list[Curve]] = {}
    for cell in run.cells:
        folder = run.tensorboard / run.training_name(cell)
        curve = _read(folder, metric) if cell.train is not None and folder.is_dir() else {}
        if curve:
            row = ", ".join(str(value) for name, value in cell.labels.items() if name != run.table.average)
            found.setdefault(row, []).append(curve)
    if not found:
        raise UserError(f"no training of '{run.table.name}' recorded '{metric}'; run the table first, or name one of "
                        "the metrics in the option file's val:metrics")
    return found


def _read(folder: Path, metric: str) -> Curve:
    scalars = recorded_scalars(folder)
    tags = [tag for tag in scalars if tag.startswith("metrics/") and tag.endswith(f"/{metric}")]
    return scalars[tags[0]] if tags else {}


def statistics(curves: list[Curve]) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Return the iterations that all runs have, the means and the standard deviations (n - 1; 0 for one run)."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves], dtype=np.float64)
    spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
    return steps, values.mean(axis=0), spread


def draw(curves: dict[str, list[Curve]], metric: str, title: str, path: Path) -> None:
    """Write a PNG with one line for each row and its standard deviation as a band.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = new_figure(9, 5.5)
    axes = figure.add_subplot()
    for row, runs in curves.items():
        steps, mean, spread = statistics(runs)
        (line,) = axes.plot(steps, mean, marker="o", markersize=3, label=f"{row} ({len(runs)})")
        axes.fill_between(steps, mean - spread, mean + spread, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="iteration", ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    axes.legend(title="runs in brackets", loc="center left", bbox_to_anchor=(1, 0.5))
    write_png(figure, path)
