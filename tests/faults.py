"""Harm in the middle of an atomic write: the process dies there, or the operating system refuses."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from basicsr_quant.io import atomic


def die() -> NoReturn:
    """Be killed, as by ``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process lives")


class FileFaults:
    """Stands between atomic writes and the operating system, counts operations, and does harm in one of them.

    A file takes three: writing (harm comes when half is written), flushing, renaming.

    Args:
        place: The operation to be harmed, from 1; None to count only.
        harm: What happens there; an exception is what the operating system answers.
    """

    def __init__(self, place: int | None = None, harm: Callable[[], None] = die) -> None:
        self.place, self.harm = place, harm
        self.count = 0

    def install(self, put: Callable[[Any, str, Any], None]) -> None:
        """Take the place of the system's functions by ``put(object, name, value)``."""
        flush, rename = os.fsync, os.replace

        def fsync(descriptor: int) -> None:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._step()
            flush(descriptor)

        def replace(source: Path, target: Path) -> None:
            self._step()
            rename(source, target)

        put(atomic, "open", self._open)
        put(os, "fsync", fsync)
        put(os, "replace", replace)

    def _step(self) -> None:
        self.count += 1
        if self.count == self.place:
            self.harm()

    def _open(self, path: Path, mode: str) -> Any:
        file = open(path, mode)  # noqa: SIM115 (the caller closes it)
        write = file.write

        def in_halves(content: Any) -> None:
            half = len(content) // 2
            write(content[:half])
            file.flush()
            self._step()
            write(content[half:])

        return _Opened(file, in_halves)


class _Opened:
    """An open file whose ``write`` is another."""

    def __init__(self, file: Any, write: Callable[[Any], None]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()
