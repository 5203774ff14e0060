"""The trainings behind the runs of a page, and their curves as its data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from basicsr_quant.errors import UserError
from basicsr_quant.report.inputs import weight_files
from basicsr_quant.report.page.runs import Run
from basicsr_quant.report.training import Curve, Training, is_training, read_training

POINTS = 500


@dataclass(frozen=True)
class Curves:
    """Curves of trainings as the page's data, and a note for each training that cannot be read."""

    trainings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def curves_of(runs: Sequence[Run], named: Sequence[Path]) -> Curves:
    """Gather the curves of the trainings behind runs, and of others.

    Args:
        runs: Those whose weights are in ``NAME/models`` of a training bring it along.
        named: Folders of further ones.

    Raises:
        UserError: One of ``named`` is no training.
    """
    found, notes = {folder.resolve(): (folder, read_training(folder)) for folder in named}, []
    for folder in _folders(runs):
        if folder.resolve() not in found:
            try:
                found[folder.resolve()] = folder, read_training(folder)
            except UserError as error:
                notes.append(str(error))
    counts = Counter(training.name for _, training in found.values())
    return Curves([_data(training, training.name if counts[training.name] == 1 else str(folder))
                   for folder, training in found.values()], notes)


def _folders(runs: Sequence[Run]) -> Iterator[Path]:
    """Yield the trainings that made the weights of runs."""
    for run in runs:
        files = {} if run.options is None else weight_files(run.options, trained=False)
        for path in map(Path, files.values()):
            if path.parent.name == "models" and is_training(path.parent.parent):
                yield path.parent.parent


def _data(training: Training, name: str) -> dict[str, Any]:
    return {"name": name, "losses": {key: _points(curve) for key, curve in training.losses.items() if curve},
            "metrics": {key: _points(curve) for key, curve in training.metrics.items() if curve}}


def _points(curve: Curve) -> list[tuple[int, float]]:
    """Return (iteration, value) in order, at most so many that a screen shows them all; the ends are among them."""
    points = sorted(curve.items())
    kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int))
    return [points[index] for index in kept]
