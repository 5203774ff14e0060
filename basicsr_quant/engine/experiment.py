"""The folders of a run, its log and its saved options."""

from __future__ import annotations

import contextlib
import datetime
import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from basicsr_quant.errors import UserError, WriteError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.options.load import difference
from basicsr_quant.options.types import Options

logger = logging.getLogger("basicsr_quant")

LOG_BYTES = 16 * 2**20
LOG_FILES = 5
OF_A_RUN = ("*.log", "models", "training_states", "metrics.json", "events.out.tfevents.*")
"""What at least one of is in the folder of a run."""


class _LogFile(RotatingFileHandler):
    """A log file that ends the run if it cannot be written (a full disk, say); what is logged later is not its own."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, WriteError):  # raised below, and caught by the next class
            raise error
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logger.removeHandler(self)
        with contextlib.suppress(OSError):
            self.close()
        raise WriteError.of(f"the log '{self.baseFilename}'", error,
                            "free space and start again, a training with --auto_resume") from error


def start_logging(folder: Path | None, name: str, is_main: bool) -> None:
    """Send the package's log to standard error and, given a folder, to a rotating file; other ranks log warnings.

    An existing file is gone on with. When one would exceed ``LOG_BYTES`` (16 MiB) it becomes ``NAME.log.1``, a former
    one ``NAME.log.2`` and so on; ``LOG_FILES`` (5) of these are kept.

    Raises:
        UserError: The folder cannot be made or written.
        WriteError: Later, from a line that cannot be written to the file.
    """
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    line = logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if folder is not None and is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handlers.append(_LogFile(folder / f"{name}.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES,
                                     encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise _unwritable(folder, error) from error
    for handler in handlers:
        handler.setFormatter(line)
        logger.addHandler(handler)


def archive(folder: Path) -> None:
    """Rename the folder of an earlier run, so that nothing of it is overwritten.

    Raises:
        UserError: The folder is there and is no run's (it holds data, or given weights), or the operating system
            refused.
    """
    try:
        if not folder.exists():
            return
        if not folder.is_dir() or (any(folder.iterdir()) and not any(any(folder.glob(mark)) for mark in OF_A_RUN)):
            raise UserError(f"'{folder}' is there and is not the folder of a run; choose another name")
        stamp = datetime.datetime.now().strftime("%Y%m%d_%H%M%S_%f")
        folder.rename(folder.with_name(f"{folder.name}_archived_{stamp}"))
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to '{folder}': {error.strerror or error}; choose other folders with "
                     "path:experiments_root, path:results_root and path:tb_root")


def experiment_folder(options: Options) -> Path:
    """Return ``experiments/<name>``."""
    return Path(options.path.experiments_root) / options.name


def results_folder(options: Options) -> Path:
    """Return ``results/<name>``."""
    return Path(options.path.results_root) / options.name


def save_options(folder: Path, name: str, text: str) -> None:
    """Write the effective options of a run as a YAML file that can be run again."""
    write_text(folder / f"{name}.yml", text)


def report_changes(before: str, now: str) -> None:
    """Log the difference between the effective options of the interrupted run and of this one."""
    changes = difference(before, now)
    if changes:
        logger.warning("resuming with changed options: %s", "; ".join(changes))
