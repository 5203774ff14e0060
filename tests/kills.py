"""Trainings that are killed at random moments, each a process forked from one that has imported everything."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FileFaults
from workshop import REPOSITORY, Workshop, load, run_train, same

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["kills", "heavy_imports"])
PATIENCE = 240
OUTPUT, COST = "output.txt", "cost.json"


@dataclass(frozen=True)
class Cost:
    """What an uninterrupted run takes: seconds of CPU time and operations on files."""

    seconds: float
    operations: int


def train_and_exit(folder: str, arguments: list[str], place: int | None) -> None:
    """Train in this process, which is the run's own; be killed in an operation on a file if asked to."""
    os.chdir(folder)
    output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    faults = FileFaults(place)
    faults.install(setattr)
    code = run_train(arguments)
    Path(COST).write_text(json.dumps({"seconds": time.process_time(), "operations": faults.count}))
    sys.exit(code)


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_server() -> None:
    """Start the process to fork from, unless it runs; multiprocessing does not tell it where modules are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY, Path(__file__).parent))))
        patch.setenv("OMP_NUM_THREADS", "1")
        multiprocessing.forkserver.ensure_running()


def run(workshop: Workshop, options: dict[str, Any], seconds: float | None = None, place: int | None = None) -> int:
    """Train with ``--auto_resume``; kill after so much CPU time or in the given operation on a file.

    Returns:
        The exit code, -9 if the run was killed.
    """
    start_server()
    arguments = ["-opt", str(workshop.write(options)), "--auto_resume"]
    process = PROCESSES.Process(target=train_and_exit, args=(str(workshop.folder), arguments, place))
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + PATIENCE
    while process.is_alive():
        assert time.monotonic() < deadline, "the run does not end"
        if seconds is not None and cpu_seconds(process.pid) >= seconds:
            process.kill()
        process.join(0.005)
    assert process.exitcode is not None
    return process.exitcode


def moments(kills: int) -> random.Random:
    """Return the source of random moments; a failed test shows the seed, which RANDOM_MOMENTS repeats."""
    seed = int(os.environ.get("RANDOM_MOMENTS") or int.from_bytes(os.urandom(4), "little"))
    print(f"{kills} random moments; repeat them with RANDOM_MOMENTS={seed}")
    return random.Random(seed)


def reference(workshop: Workshop, options: dict[str, Any]) -> Cost:
    """Run uninterrupted as ``reference``."""
    assert run(workshop, options | {"name": "reference"}) == 0, output(workshop)
    return Cost(**json.loads((workshop.folder / COST).read_text()))


def output(workshop: Workshop) -> str:
    """Everything that the runs said."""
    return (workshop.folder / OUTPUT).read_text()


def kill_and_resume(workshop: Workshop, options: dict[str, Any], kills: int) -> None:
    """Kill a run and the runs that resume it, by turns in a save and anywhere, and compare the end with a whole run's.

    A run that ends before its moment is begun again. Shares of the whole are such that most runs get to their end.
    """
    cost = reference(workshop, options)
    draw, share = moments(kills), min(1.0, 1.5 / kills)
    killed, begun, first = 0, 0, draw.randrange(2)
    while killed < kills:
        begun += 1
        in_save = (killed + first) % 2 == 0
        place = draw.randint(1, max(1, int(share * cost.operations))) if in_save else None
        seconds = None if in_save else draw.uniform(0, share * cost.seconds)
        print(f"kill {killed + 1}: operation {place}" if in_save else f"kill {killed + 1}: {seconds:.3f} s")
        code = run(workshop, options, seconds, place)
        assert code in (0, -signal.SIGKILL), output(workshop)
        killed += code == -signal.SIGKILL
        if code == 0:
            assert begun < 4 * kills, "the moments come too late"
            shutil.rmtree(workshop.experiment(options["name"]))
    assert run(workshop, options) == 0, output(workshop)
    assert "Traceback" not in output(workshop)
    assert_same_end(workshop, options["name"])


def assert_same_end(workshop: Workshop, name: str) -> None:
    """Compare networks, optimizers and everything that was logged with those of ``reference``."""
    folders = [workshop.experiment(run) for run in (name, "reference")]
    mine, theirs = ({path.name: path for path in folder.glob("models/*")} for folder in folders)
    end = max(int(path.stem) for path in folders[1].glob("training_states/*.state"))
    final = {file for file in theirs if re.search(rf"_({end}|best|latest)\.pth$", file)}
    assert final and final <= mine.keys()
    assert not [file for file in final if not same(load(mine[file]), load(theirs[file]))]
    states = [workshop.state(run, end) for run in (name, "reference")]
    assert [key for key in states[1] if not same(states[0][key], states[1][key])] == ["options"]
    assert logged(workshop, name) == logged(workshop, "reference")
    assert not list(folders[0].rglob("*.tmp"))


def logged(workshop: Workshop, name: str) -> set[tuple[str, str]]:
    """Losses, rates and validation results as logged, also of iterations that were run more than once."""
    text = (workshop.experiment(name) / f"train_{name}.log").read_text()
    return {*re.findall(r"iteration (\d+)/\d+, (lr .*?), [\d.]+ s/it", text),
            *re.findall(r"validation \w+, iteration (\d+): (.*)", text)}
