"""Filling a table: each cell is run once and kept under the digest of everything that it depends on."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr_quant import __version__
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import remove_leftovers, write_text
from basicsr_quant.options.load import effective_yaml, load_options
from basicsr_quant.report.cells import Cell, Step, TableFile
from basicsr_quant.report.inputs import content_digests, weight_files
from basicsr_quant.report.programs import Programs, alone

logger = logging.getLogger("basicsr_quant")

ROOT = Path("results/tables")


class TableRun:
    """The cells of a table and what is known of them.

    Args:
        table: The file.
        cells: Its cells, filled in.
        protocol: How they are measured.
        datasets: Names of the test sets to measure on; none for all.
        root: Where results are kept.
    """

    def __init__(self, table: TableFile, cells: Iterable[Cell], protocol: str, datasets: Sequence[str] = (),
                 root: Path = ROOT) -> None:
        self.table, self.protocol, self.datasets = table, protocol, tuple(datasets)
        self.cells = list(cells)
        self.folder = root / table.name

    def run(self) -> list[str]:
        """Run every cell that is not there yet; return one line for each that failed.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the program that was running has ended.
        """
        failures = []
        with Programs() as programs:
            for number, cell in enumerate(self.cells, 1):
                logger.info("cell %d/%d: %s", number, len(self.cells), cell.name)
                try:
                    if self.result(cell) is None:
                        self._run_alone(cell, programs)
                except UserError as error:
                    logger.warning("cell '%s': %s", cell.name, error)
                    failures.append(f"{cell.name}: {error}")
        return failures

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Return what is known of a cell, or None if it was not run with these options and weights."""
        path = self._file(cell)
        if not path.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            if content["metrics"].keys() and content["train_minutes"] >= 0:
                return content
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        logger.warning("'%s' is damaged; the cell counts as not run", path)
        return None

    def training_name(self, cell: Cell) -> str:
        """Return the name of the run that trains a cell."""
        return f"{cell.name}-{self._train_digest(cell)[:12]}"

    @property
    def tensorboard(self) -> Path:
        """Folder of the trainings' TensorBoard files, one folder each."""
        return self.folder / "tb_logger"

    def _file(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}-{self._test_digest(cell)[:12]}.json"

    def _run_alone(self, cell: Cell, programs: Programs) -> None:
        """Run a cell unless another process does, or did just now."""
        name = self.training_name(cell)
        with alone(self.folder / "locks" / name, f"the cell '{cell.name}' of '{self.table.name}'") as lock:
            if self.result(cell) is None:
                self._run_cell(cell, name, lambda script, *arguments: programs.run(script, arguments, lock))

    def _run_cell(self, cell: Cell, name: str, run: Callable[..., None]) -> None:
        path, began = self._file(cell), time.monotonic()
        remove_leftovers(self.folder, glob.escape(path.name))
        resumed = (self.folder / "experiments" / name).is_dir()
        if cell.train is not None:
            run("train.py", "-opt", cell.train.opt, "--auto_resume", "--force_yml", *cell.train.force, f"name={name}",
                f"path:experiments_root={self.folder / 'experiments'}", f"path:tb_root={self.tensorboard}")
        trained = time.monotonic() - began
        models = self.folder / "experiments" / name / "models"
        made = [f"{key}={models / file}" for key, file in cell.weights.items()] if cell.train is not None else []
        run("test.py", "-opt", cell.test.opt, "--force_yml", *cell.test.force, f"name={name}",
            f"path:results_root={self.folder / 'runs'}", *self._sets, *made)
        metrics = json.loads((self.folder / "runs" / name / "metrics.json").read_text())
        content = {
            "labels": cell.labels, "metrics": {name: entry["mean"] for name, entry in metrics.items()},
            "train_minutes": trained / 60, "minutes": (time.monotonic() - began) / 60, "resumed": resumed,
            "versions": {"basicsr_quant": __version__, "python": platform.python_version(), "revision": _revision()},
        }
        write_text(path, json.dumps(content, indent=1))

    @property
    def _sets(self) -> list[str]:
        return [f"val:test_sets=[{', '.join(self.datasets)}]"] if self.datasets else []

    @staticmethod
    def _train_digest(cell: Cell) -> str:
        """Hash the effective options of the training and the contents of the files that they name."""
        return "" if cell.train is None else _digest(cell.train, (), is_train=True, trained=True)

    def _test_digest(self, cell: Cell) -> str:
        """Hash what the training and the test depend on."""
        tested = _digest(cell.test, self._sets, is_train=False, trained=cell.train is not None)
        text = self._train_digest(cell) + tested
        return hashlib.sha256(text.encode()).hexdigest()


def _digest(step: Step, settings: Sequence[str], is_train: bool, trained: bool) -> str:
    options = load_options(step.opt, [*step.force, *settings], is_train=is_train)
    hashed = hashlib.sha256(effective_yaml(options).encode())
    for content in content_digests(weight_files(options, trained)):
        hashed.update(content.encode())
    return hashed.hexdigest()


def _revision() -> str:
    """Return the commit of the checkout, or an empty text outside one."""
    finished = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True)
    return finished.stdout.strip()


def select(cells: Iterable[Cell], wanted: Mapping[str, str]) -> list[Cell]:
    """Return the cells whose labels have the wanted values.

    Raises:
        UserError: No cell has them.
    """
    found = [cell for cell in cells if all(str(cell.labels.get(key)) == value for key, value in wanted.items())]
    if not found:
        raise UserError(f"table: no cell has {', '.join(f'{key}={value}' for key, value in wanted.items())}")
    return found
