"""The programs that fill a table: one at a time, ended with the process that started them, never two in one place."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from basicsr_quant.engine.interruption import Interrupted
from basicsr_quant.errors import UserError

GO_ON = "finished cells are kept, the same command goes on where it stopped"
PR_SET_PDEATHSIG = 1


class Programs:
    """Runs programs one after another; as a context, it passes SIGINT and SIGTERM on to the one that runs.

    Each is in a process group of its own, so that Ctrl-C reaches it once: from here. On Linux it gets SIGTERM when this
    process is killed.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._running: subprocess.Popen[str] | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Programs:
        self._former = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self._received.append(number)
        if self._running is None:
            raise Interrupted(self._received, GO_ON)
        self._running.send_signal(number)

    def run(self, script: str, arguments: Sequence[str], lock: int) -> None:
        """Run a Python script to its end and pass its standard error through.

        Args:
            script: Its path.
            arguments: Of its command line.
            lock: A file descriptor (see :func:`alone`) that it shall hold too.

        Raises:
            UserError: It failed; the last line that it said.
            Interrupted: A signal came, and the program has ended.
        """
        last = ""
        with subprocess.Popen([sys.executable, script, *arguments], stderr=subprocess.PIPE, text=True, process_group=0,
                              pass_fds=(lock,), preexec_fn=_end_with_parent()) as process:
            self._running = process
            assert process.stderr is not None
            for line in process.stderr:
                sys.stderr.write(line)
                last = line.strip() or last
        self._running = None
        if self._received:
            raise Interrupted(self._received, GO_ON)
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            raise UserError(f"{script}: ended by {name}; if nobody sent it, memory was short. Run the table again")
        if process.returncode:
            raise UserError(f"{script}: {last.removeprefix('error: ') or f'exit code {process.returncode}'}")


def _end_with_parent() -> Callable[[], Any] | None:
    """Return what a new process is to do first; nothing where the system cannot tell it of its parent's end."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[int]:
    """Hold a lock, and yield the file descriptor that it lasts with: in this process and all that inherit it.

    Args:
        path: The lock's file, which stays.
        what: What is worked on, for the message.

    Raises:
        UserError: Another process holds it.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process works on {what}; wait for its end, then run the table again") from error
        yield file.fileno()
