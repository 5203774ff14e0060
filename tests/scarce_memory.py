"""Commands in a process that may take only so many bytes more than it has after its imports."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

from kills import PATIENCE, PROCESSES, start_server
from workshop import Workshop, run_test, run_train

OUTPUT = "scarce.txt"


def _run(folder: str, spare: int, testing: bool, arguments: list[str]) -> None:
    os.chdir(folder)
    with open(OUTPUT, "w") as output:
        os.dup2(output.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.exit((run_test if testing else run_train)(arguments))


def run(workshop: Workshop, options: dict[str, Any], *force: str, spare: int, testing: bool = False,
        ) -> tuple[int | None, str]:
    """Run train.py or test.py with ``spare`` bytes; return exit code and standard error."""
    start_server()
    arguments = ["-opt", str(workshop.write(options)), *(["--force_yml", *force] if force else [])]
    process = PROCESSES.Process(target=_run, args=(str(workshop.folder), spare, testing, arguments))
    process.start()
    process.join(PATIENCE)
    process.kill()
    return process.exitcode, (workshop.folder / OUTPUT).read_text()
