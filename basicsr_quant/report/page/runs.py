"""What ``test.py`` and ``analyse`` left in the folders of runs."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from basicsr_quant.errors import UserError
from basicsr_quant.options.load import load_options
from basicsr_quant.options.types import Options
from basicsr_quant.report.analysis import FILE as ANALYSIS

METRICS = "metrics.json"
AVERAGE = "AVERAGE"
Values = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One folder under ``results``.

    Attributes:
        name: Shown; no other run has it.
        folder: Where its files are.
        options: With which it was tested; None if they are not there.
        trouble: Why they are not there.
        means: Data set -> metric -> mean; no metrics without references.
        rows: Data set -> image -> metric -> value.
        seconds_per_image: Wall-clock seconds of restoring, measuring and writing over the number of images.
        analysis: What ``analyse`` found, or None.
    """

    name: str
    folder: Path
    options: Options | None
    trouble: str
    means: dict[str, Values]
    rows: dict[str, dict[str, Values]]
    seconds_per_image: float
    analysis: dict[str, Any] | None

    def image(self, dataset: str, stem: str) -> Path:
        """Return where a restored image is, if it was saved."""
        suffix = None
        if self.options is not None and self.options.val is not None:
            suffix = self.options.val.suffix if self.options.val.suffix is not None else self.options.name
        suffix = self.folder.name if suffix is None else suffix
        return self.folder / "visualization" / dataset / f"{stem}{'_' if suffix else ''}{suffix}.png"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs; a folder that is none stands for the runs inside it.

    Raises:
        UserError: A folder holds no run, is named twice, or a file in it is damaged.
    """
    runs: list[Run] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"'{folder}' is no folder; name the folders that test.py wrote, such as results/NAME")
        inside = [folder] if (folder / METRICS).is_file() else sorted(
            child for child in folder.iterdir() if (child / METRICS).is_file())
        if not inside:
            raise UserError(f"'{folder}' holds no {METRICS}; run test.py first, or name the folder of a run")
        runs += [_read(each) for each in inside]
    for path, count in Counter(run.folder.resolve() for run in runs).items():
        if count > 1:
            raise UserError(f"'{path}' is named twice; name each run once")
    scales = {run.options.scale: run for run in runs if run.options is not None}
    if len(scales) > 1:
        told = ", ".join(f"'{run.folder}' x{scale}" for scale, run in scales.items())
        raise UserError(f"the runs enlarge by different factors ({told}); make a page for each")
    return _with_own_names(runs)


def _read(folder: Path) -> Run:
    metrics = _json(folder / METRICS)
    try:
        means = {name: {key: float(value) for key, value in entry["mean"].items()} for name, entry in metrics.items()}
        seconds, images = (sum(entry[key] for entry in metrics.values()) for key in ("seconds", "images"))
        rows = {name: _rows(folder / f"{name}.csv") for name in metrics}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"'{folder / METRICS}' or a CSV file beside it is not what test.py writes; run test.py again"
                        ) from error
    if not metrics or not images:
        raise UserError(f"'{folder / METRICS}' is empty; run test.py again")
    options, trouble = _options(folder)
    analysis = _json(folder / ANALYSIS) if (folder / ANALYSIS).is_file() else None
    if analysis is not None and not isinstance(analysis.get("layers"), list):
        raise UserError(f"'{folder / ANALYSIS}' is not what analyse writes; run it again")
    return Run(folder.name, folder, options, trouble, means, rows, seconds / images, analysis)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read or is damaged; run the command that wrote it again") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is damaged; run the command that wrote it again")
    return content


def _rows(path: Path) -> dict[str, Values]:
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        lines = {line.pop("image"): {name: float(value) for name, value in line.items()}
                 for line in csv.DictReader(file)}
    return {image: {name: value for name, value in line.items() if math.isfinite(value)}
            for image, line in lines.items() if image != AVERAGE}


def _options(folder: Path) -> tuple[Options | None, str]:
    """Return the options that test.py saved, or None and why not."""
    found = sorted(folder.glob("test_*.yml"))
    if len(found) != 1:
        return None, f"'{folder}' holds {len(found)} option files test_*.yml, one was expected"
    try:
        return load_options(found[0], is_train=False), ""
    except UserError as error:
        return None, str(error)


def _with_own_names(runs: list[Run]) -> list[Run]:
    counts = Counter(run.name for run in runs)
    return [run if counts[run.name] == 1 else replace(run, name=str(run.folder)) for run in runs]
