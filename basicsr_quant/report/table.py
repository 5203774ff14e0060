"""Filling a table: each cell is run once and kept under the digest of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr_quant import __version__
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.weights import file_digest
from basicsr_quant.options.load import effective_yaml, load_options
from basicsr_quant.report.cells import Cell, Step, TableFile

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
        """Run every cell that is not there yet; return one line for each that failed."""
        failures = []
        for number, cell in enumerate(self.cells, 1):
            logger.info("cell %d/%d: %s", number, len(self.cells), cell.name)
            try:
                if self.result(cell) is None:
                    self._run_cell(cell)
            except UserError as error:
                logger.warning("cell '%s': %s", cell.name, error)
                failures.append(f"{cell.name}: {error}")
        return failures

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Return what is known of a cell, or None if it was not run with these options and weights."""
        path = self._file(cell)
        content: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return content

    def training_name(self, cell: Cell) -> str:
        """Return the name of the run that trains a cell."""
        return f"{cell.name}-{self._train_digest(cell)[:12]}"

    @property
    def tensorboard(self) -> Path:
        """Folder of the trainings' TensorBoard files, one folder each."""
        return self.folder / "tb_logger"

    def _file(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}-{self._test_digest(cell)[:12]}.json"

    def _run_cell(self, cell: Cell) -> None:
        path, began = self._file(cell), time.monotonic()
        name = self.training_name(cell)
        if cell.train is not None:
            _python("train.py", cell.train, [f"name={name}", f"path:experiments_root={self.folder / 'experiments'}",
                                             f"path:tb_root={self.tensorboard}"], ["--auto_resume"])
        trained = time.monotonic() - began
        models = self.folder / "experiments" / name / "models"
        made = [f"{key}={models / file}" for key, file in cell.weights.items()] if cell.train is not None else []
        settings = [f"name={name}", f"path:results_root={self.folder / 'runs'}", *self._sets, *made]
        _python("test.py", cell.test, settings, [])
        metrics = json.loads((self.folder / "runs" / name / "metrics.json").read_text())
        content = {
            "labels": cell.labels, "metrics": {name: entry["mean"] for name, entry in metrics.items()},
            "train_minutes": trained / 60, "minutes": (time.monotonic() - began) / 60,
            "versions": {"basicsr_quant": __version__, "python": platform.python_version(), "revision": _revision()},
        }
        write_text(path, json.dumps(content, indent=1))

    @property
    def _sets(self) -> list[str]:
        return [f"val:test_sets=[{', '.join(self.datasets)}]"] if self.datasets else []

    @staticmethod
    def _train_digest(cell: Cell) -> str:
        """Hash the effective options of the training and the contents of the files that they name."""
        return _digest(cell.train, (), is_train=True) if cell.train is not None else ""

    def _test_digest(self, cell: Cell) -> str:
        """Hash what the training and the test depend on."""
        text = self._train_digest(cell) + _digest(cell.test, self._sets, is_train=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _digest(step: Step, settings: Sequence[str], is_train: bool) -> str:
    options = load_options(step.opt, [*step.force, *settings], is_train=is_train)
    hashed = hashlib.sha256(effective_yaml(options).encode())
    for name in _weight_files(options):
        hashed.update(file_digest(name).encode() if Path(name).is_file() else b"absent")
    return hashed.hexdigest()


def _weight_files(options: Any) -> list[str]:
    """Return the files that the options name under ``pretrain_*``, ``cali_data`` and ``weights``."""
    found = [getattr(options.path, field) for field in options.path.__struct_fields__ if field.startswith("pretrain_")]
    found.append(getattr(getattr(options, "pathFP", None), "pretrain_network_FP", None))
    found.append(getattr(options, "cali_data", None))
    networks = [getattr(options, name, None) for name in ("network_Q", "network_g")]
    found += [network.arguments.get("weights") for network in networks if network is not None]
    return sorted(str(name) for name in found if name)


def _python(script: str, step: Step, settings: list[str], extra: list[str]) -> None:
    command = [sys.executable, script, "-opt", step.opt, *extra, "--force_yml", *step.force, *settings]
    last = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            last = line.strip() or last
    if process.returncode:
        raise UserError(f"{script}: {last.removeprefix('error: ') or f'exit code {process.returncode}'}")


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
