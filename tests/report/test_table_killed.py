"""A table that is killed, interrupted, or run twice at once ends as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from workshop import Workshop

from basicsr_quant.cli.main import main
from basicsr_quant.cli.main import test_main as run_test
from basicsr_quant.cli.main import train_main as run_train
from basicsr_quant.errors import UserError
from basicsr_quant.io import atomic
from basicsr_quant.report.cells import expand, read_table
from basicsr_quant.report.programs import Programs, alone
from basicsr_quant.report.table import TableRun

KILLS = 5
CELLS = [
    {"labels": {"method": "FP", "bit": 32}, "test": {"opt": "test_it.yml", "force": ["quant:fp_test=true"]}},
    {"labels": {"method": "2DQuant", "bit": "{bit}"}, "each": {"bit": [3, 4]},
     "train": {"opt": "train_it.yml", "force": ["bit={bit}", "train:total_iter={iterations}"]},
     "test": {"opt": "test_it.yml", "force": ["bit={bit}"]}},
]


def write_table(folder: Path, name: str, iterations: int = 4, cells: Sequence[dict[str, Any]] = CELLS) -> str:
    """Write a table; tables of different names share no results."""
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump({"name": name, "title": "Killed", "protocol": "as they are", "cells": list(cells),
                                    "settings": {"iterations": iterations}}, sort_keys=False))
    return str(path)


def saved(folder: Path, name: str) -> dict[str, Any]:
    """Name of a cell with its digest -> metrics."""
    files = (folder / "results" / "tables" / name).glob("*.json")
    return {path.name: json.loads(path.read_text())["metrics"] for path in files}


def shown(path: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The table's lines without minutes."""
    capsys.readouterr()
    assert main(["table", "show", path]) == 0
    return [line.rpartition(" | ")[0] for line in capsys.readouterr().out.splitlines()]


class Start(Protocol):
    def __call__(self, path: str) -> subprocess.Popen[str]: ...


@pytest.fixture
def start(place: Workshop) -> Iterator[Start]:
    """Starts ``table run`` as a program, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(path: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen([sys.executable, "-m", "basicsr_quant", "table", "run", path], text=True,
                                        cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for program in started:
        program.kill()
        program.communicate()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_training(folder: Path, name: str, program: subprocess.Popen[str]) -> int:
    """Wait until a training of the table iterates and return the process that does it."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and program.poll() is None:
        logs = (folder / "results" / "tables" / name / "experiments").glob("*/train_*.log")
        if any("iteration 2/" in log.read_text() for log in logs):
            return children(program.pid)[0]
        time.sleep(0.01)
    program.kill()
    raise AssertionError(f"no training began: {program.communicate()}")


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is only waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Killed(BaseException):
    """Stands for SIGKILL in a process that has to live on."""


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Run the programs of a table in this process; each number in the list ends the run after so many more files."""
    left: list[int] = []
    replace = os.replace

    def dying(source: str, target: str) -> None:
        if left and left[0] == 0:
            left.pop(0)
            raise Killed
        replace(source, target)
        if left:
            left[0] -= 1

    def run(self: Programs, script: str, arguments: Sequence[str], lock: int) -> None:
        assert {"train.py": run_train, "test.py": run_test}[script](arguments) == 0

    monkeypatch.setattr(atomic.os, "replace", dying)
    monkeypatch.setattr(Programs, "run", run)
    yield left


def test_killed_after_any_file(place: Workshop, in_process: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    cells = [CELLS[0], CELLS[1] | {"each": {"bit": [3]}}]
    whole, killed = (write_table(place.folder, name, 2, cells) for name in ("whole", "killed"))
    assert main(["table", "run", whole]) == 0
    draw = random.Random(1)
    for _ in range(KILLS):
        in_process.append(draw.randrange(5))
        with pytest.raises(Killed):
            main(["table", "run", killed])
    assert not in_process and len(saved(place.folder, "killed")) < 2
    assert main(["table", "run", killed]) == 0
    assert saved(place.folder, "killed") == saved(place.folder, "whole") and len(saved(place.folder, "whole")) == 2
    assert shown(killed, capsys) == shown(whole, capsys)


@pytest.mark.slow
def test_killed_at_five_moments(place: Workshop, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """With everything that it started, or alone, so that what it started has to end by itself."""
    whole, killed = (write_table(place.folder, name, 6, CELLS[1:]) for name in ("whole", "killed"))
    began = time.monotonic()
    left_alone = start(whole)
    assert left_alone.wait(500) == 0, left_alone.communicate()
    duration = time.monotonic() - began
    folder = place.folder / "results" / "tables" / "killed"
    draw, kills = random.Random(7), 0
    while kills < KILLS:
        program = start(killed)
        time.sleep(1 + draw.random() * duration / 5)
        if program.poll() is not None:
            shutil.rmtree(folder)
            continue
        started = children(program.pid)
        for pid in [program.pid] if draw.random() < 0.5 else [program.pid, *started]:
            os.kill(pid, signal.SIGKILL)
        program.communicate()
        kills += 1
        deadline = time.monotonic() + 60
        while any(alive(pid) for pid in started):
            assert time.monotonic() < deadline, "what the table started outlived it"
            time.sleep(0.05)
    last = start(killed)
    assert last.wait(500) == 0, last.communicate()
    assert saved(place.folder, "killed") == saved(place.folder, "whole") and len(saved(place.folder, "whole")) == 2
    assert shown(killed, capsys) == shown(whole, capsys)
    assert not list(folder.glob(".*.tmp")) and not list(folder.glob("experiments/*/**/.*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_what_the_table_started(place: Workshop, start: Start, number: signal.Signals) -> None:
    path = write_table(place.folder, "stopped", 2000, CELLS[1:])
    program = start(path)
    training = wait_for_training(place.folder, "stopped", program)
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 128 + number and not alive(training)
    assert f"{number.name}: finishing this iteration, then saving" in errors
    last = errors.splitlines()[-1]
    assert last == f"interrupted by {number.name}; finished cells are kept, the same command goes on where it stopped"
    folder = place.folder / "results" / "tables" / "stopped"
    assert list(folder.glob("experiments/*/training_states/*.state")) and not saved(place.folder, "stopped")


@pytest.mark.slow
def test_second_run_leaves_the_first_alone(place: Workshop, start: Start) -> None:
    path = write_table(place.folder, "twice", 2000, CELLS[1:])
    first = start(path)
    training = wait_for_training(place.folder, "twice", first)
    second = subprocess.run([sys.executable, "-m", "basicsr_quant", "table", "run", path, "--cells", "bit=3"],
                            cwd=place.folder, text=True, capture_output=True, timeout=240, check=False)
    assert second.returncode == 2 and first.poll() is None and alive(training)
    assert "another process works on the cell '2DQuant-3' of 'twice'" in second.stderr.splitlines()[-1]
    os.kill(first.pid, signal.SIGTERM)
    first.communicate(timeout=60)


def test_lock_lasts_as_long_as_a_program_that_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "cell"
    with alone(lock, "it") as held:
        sleeping = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(held,))
        with pytest.raises(UserError, match="another process works on it"), alone(lock, "it"):
            raise AssertionError("locked twice")
    with pytest.raises(UserError, match="another process works on it"), alone(lock, "it"):
        raise AssertionError("locked twice")
    sleeping.communicate(b"\n")
    with alone(lock, "it"):
        pass


def test_how_a_program_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line each."""
    monkeypatch.chdir(tmp_path)
    endings = {
        "import sys; sys.stderr.write('log\\nerror: no data\\n'); sys.exit(2)": "^it.py: no data$",
        "import sys; sys.exit(3)": "^it.py: exit code 3$",
        "import os; os.kill(os.getpid(), 9)": "^it.py: ended by SIGKILL; if nobody sent it, memory was short",
    }
    for text, message in endings.items():
        Path("it.py").write_text(text)
        with Path("lock").open("w") as lock, pytest.raises(UserError, match=message), Programs() as programs:
            programs.run("it.py", [], lock.fileno())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"metrics": 3}', '{"metrics": {}}'])
def test_damaged_cell_counts_as_not_run(place: Workshop, text: str, caplog: pytest.LogCaptureFixture) -> None:
    table = read_table(write_table(place.folder, "damaged"))
    cell = next(expand(table, {}))
    run = TableRun(table, [cell], "")
    folder = place.folder / "results" / "tables" / "damaged"
    folder.mkdir(parents=True)
    path = folder / f"{cell.name}-{run._test_digest(cell)[:12]}.json"
    path.write_text(text)
    assert run.result(cell) is None
    assert [re.sub("'.*'", "", record.message) for record in caplog.records] == [
        " is damaged; the cell counts as not run"]
    path.write_text(json.dumps({"metrics": {"val": {"psnr": 3.0}}, "train_minutes": 0}))
    assert run.result(cell) is not None
