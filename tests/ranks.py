"""Several ranks of one run, each a process forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from kills import PATIENCE, PROCESSES, start_server
from workshop import Workshop, run_test, run_train


def _be_rank(folder: str, rank: int, count: int, port: int, testing: bool, arguments: list[str]) -> None:
    os.chdir(folder)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="localhost",
                      MASTER_PORT=str(port))
    with open(f"rank{rank}.txt", "w") as output:
        os.dup2(output.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.exit((run_test if testing else run_train)([*arguments, "--launcher", "pytorch"]))


@dataclass
class Ranks:
    """Started ranks."""

    folder: Path
    processes: list[ForkServerProcess]

    def kill(self, rank: int) -> None:
        """End one as ``kill -9`` does."""
        process = self.processes[rank].pid
        assert process is not None
        os.kill(process, signal.SIGKILL)

    def wait(self, seconds: float = PATIENCE) -> tuple[list[int | None], str]:
        """Wait for the end of all; return their exit codes (None: still alive, and killed now) and all they said."""
        for process in self.processes:
            process.join(seconds)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes, "".join((self.folder / f"rank{rank}.txt").read_text() for rank in range(len(codes)))


def start(workshop: Workshop, options: dict[str, Any], *force: str, count: int, testing: bool = False) -> Ranks:
    """Start ``count`` ranks of train.py or test.py with what torchrun would put into their environment."""
    start_server()
    port = free_port()
    arguments = ["-opt", str(workshop.write(options)), *(["--force_yml", *force] if force else [])]
    processes = [PROCESSES.Process(target=_be_rank, args=(str(workshop.folder), rank, count, port, testing, arguments))
                 for rank in range(count)]
    for process in processes:
        process.start()
    return Ranks(workshop.folder, processes)


def run(workshop: Workshop, options: dict[str, Any], *force: str, count: int, testing: bool = False) -> tuple[int, str]:
    """Run them to their end; return the largest exit code and all they said."""
    codes, errors = start(workshop, options, *force, count=count, testing=testing).wait()
    return max(-1 if code is None else abs(code) for code in codes), errors


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
        return port


def children(process: int) -> list[int]:
    """Return the processes that a process started and that live."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == process and fields[0] != "Z":
                found.append(int(entry.name))
    return found
