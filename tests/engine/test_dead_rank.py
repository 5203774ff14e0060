"""A rank that is killed in the middle of a training ends the whole job, soon, with a reason, and with nothing lost."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import ranks
from workshop import Workshop, error_lines, same

from basicsr_quant.engine.checkpoint import newest_valid

REASON = "error: another process of this run ended: its message says why, or it was killed"
LIMIT = 60


def endless(workshop: Workshop) -> None:
    workshop.fp["train"]["total_iter"] = 10_000
    workshop.fp["logger"] |= {"save_checkpoint_freq": 3, "print_freq": 1}
    workshop.fp["val"]["val_freq"] = 10_000


def wait_for_iteration(workshop: Workshop, iteration: int) -> None:
    log = workshop.experiment("fp") / "train_fp.log"
    deadline = time.monotonic() + 240
    while not (log.is_file() and f"iteration {iteration}/" in log.read_text()):
        assert time.monotonic() < deadline, "the iteration is not reached"
        time.sleep(0.01)


def assert_nothing_lost(workshop: Workshop) -> int:
    """The newest state is the last one that was saved, and can be trusted."""
    path, state, reasons = newest_valid(workshop.experiment("fp"))
    assert path is not None and state is not None and not reasons
    return int(state["iteration"])


@pytest.mark.parametrize(("killed", "count"), [
    (1, 2), (0, 2), pytest.param(2, 4, marks=pytest.mark.slow), pytest.param(0, 4, marks=pytest.mark.slow)])
def test_others_end_by_themselves(workshop: Workshop, killed: int, count: int) -> None:
    """Nobody watches over these ranks, as torchrun would."""
    endless(workshop)
    workshop.fp["datasets"]["train"]["batch_size_per_gpu"] = 1
    job = ranks.start(workshop, workshop.fp, count=count)
    wait_for_iteration(workshop, 7)
    job.kill(killed)
    began = time.monotonic()
    codes, errors = job.wait(LIMIT)
    assert time.monotonic() - began < LIMIT
    assert codes == [-signal.SIGKILL if rank == killed else 2 for rank in range(count)], errors
    assert "Traceback" not in errors
    assert len([line for line in error_lines(errors) if line.startswith(REASON)]) == count - 1, errors
    saved = assert_nothing_lost(workshop)
    assert saved >= 6
    if count == 2:
        last = f"train:total_iter={saved + 2}"
        assert workshop.train(workshop.fp, last, flags=["--auto_resume"]) == 0
        assert workshop.state("fp", saved + 2)["iteration"] == saved + 2


@pytest.mark.slow
def test_torchrun_says_which_rank_was_killed(workshop: Workshop) -> None:
    endless(workshop)
    process = workshop.start("train.py", workshop.fp, processes=2)
    workshop.wait_for_iteration(process, "fp", 7)
    victim = next(child for child in ranks.children(process.pid) if _rank(child) == "1")
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=LIMIT)
    assert time.monotonic() - began < LIMIT
    assert process.returncode not in (0, None)
    assert re.search(r"rank +: 1 ", errors) and f"Signal 9 (SIGKILL) received by PID {victim}" in errors
    assert assert_nothing_lost(workshop) >= 6
    network = workshop.network("fp", "g", 6)
    assert workshop.train(workshop.fp, "train:total_iter=9", flags=["--auto_resume"]) == 0
    assert same(workshop.network("fp", "g", 6), network)


def _rank(process: int) -> str:
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((entry[5:].decode() for entry in variables if entry.startswith(b"RANK=")), "")
