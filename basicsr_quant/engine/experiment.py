"""The folders of a run, its log and its saved options."""

from __future__ import annotations

import datetime
import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.options.load import difference
from basicsr_quant.options.types import Options

logger = logging.getLogger("basicsr_quant")

LOG_BYTES = 16 * 2**20
LOG_FILES = 5


class _LogFile(RotatingFileHandler):
    """A log file whose trouble (a full disk, say) does not fill the terminal with tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def start_logging(folder: Path | None, name: str, is_main: bool) -> None:
    """Send the package's log to standard error and, given a folder, to a rotating file; other ranks log warnings.

    Raises:
        UserError: The folder cannot be made or written.
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
            handlers.append(_LogFile(folder / f"{name}.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES))
        except OSError as error:
            raise _unwritable(folder, error) from error
    for handler in handlers:
        handler.setFormatter(line)
        logger.addHandler(handler)


def archive(folder: Path) -> None:
    """Rename an existing folder, so that nothing of an earlier run is overwritten.

    Raises:
        UserError: The operating system refused.
    """
    if folder.exists():
        stamp = datetime.datetime.now().strftime("%Y%m%d_%H%M%S_%f")
        try:
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
