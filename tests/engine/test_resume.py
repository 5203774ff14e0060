"""Interrupted and resumed runs end with the weights, to the bit, of the uninterrupted one."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from workshop import Workshop, error_lines, same

LENGTH = 60


def long_options(workshop: Workshop, kind: str) -> tuple[dict[str, Any], str]:
    """Drop path is active in full-precision training, EMA in both; averages of losses span checkpoints."""
    options, label = (workshop.fp, "g") if kind == "fp" else (workshop.dqc, "Q")
    options["train"] |= {"total_iter": LENGTH, "ema_decay": 0.9}
    options["logger"] |= {"print_freq": 2, "save_checkpoint_freq": 3}
    options["val"]["val_freq"] = 10
    return options, label


def assert_equal_end(workshop: Workshop, options: dict[str, Any], label: str, since: int) -> None:
    """Compare run ``<name>`` with the uninterrupted run ``reference``."""
    name = options["name"]
    resumed, reference = (workshop.network(run, label, LENGTH) for run in (name, "reference"))
    assert resumed.keys() == reference.keys() == {"params", "params_ema", "metadata"}
    assert same(resumed, reference)
    assert same(workshop.network(name, label, "best"), workshop.network("reference", label, "best"))
    left, right = (workshop.state(run, LENGTH) for run in (name, "reference"))
    for key in ("optimizers", "scaler", "losses", "best", "iteration"):
        assert same(left[key], right[key]), key
    mine, theirs = workshop.losses(name), workshop.losses("reference")
    assert {i: mine[i] for i in theirs if i > since} == {i: line for i, line in theirs.items() if i > since}


def resumed_at(workshop: Workshop, name: str) -> int:
    text = (workshop.experiment(name) / f"train_{name}.log").read_text()
    starts = re.findall(r"iterations (\d+) to", text)
    assert len(starts) == 2
    return int(starts[-1]) - 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_iteration_and_saves(workshop: Workshop, number: signal.Signals) -> None:
    options, label = long_options(workshop, "fp")
    options["logger"]["save_checkpoint_freq"] = 1000
    assert workshop.train(options, "name=reference") == 0
    process = workshop.start("train.py", options)
    workshop.wait_for_iteration(process, "fp", 6)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert error_lines(errors) == [f"interrupted by {number.name}; the state was saved, go on with --auto_resume"]
    assert workshop.train(options, flags=["--auto_resume"]) == 0
    since = resumed_at(workshop, "fp")
    assert 6 <= since < LENGTH
    assert_equal_end(workshop, options, label, since)


def test_changed_options_are_logged_and_obeyed(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    assert workshop.train(workshop.fp, "train:optim_g:lr=1e-4", "train:optim_g:betas=[0.5, 0.9]",
                          flags=["--auto_resume"]) == 0
    log = (workshop.experiment("fp") / "train_fp.log").read_text()
    (line,) = [line for line in log.splitlines() if "changed options" in line]
    assert "train:total_iter" in line and "train:optim_g:lr" in line and "0.0001" in line and "manual_seed" not in line
    group = workshop.state("fp", 4)["optimizers"][0]["param_groups"][0]
    assert list(group["betas"]) == [0.5, 0.9] and group["lr"] == pytest.approx(0.5e-4)


def test_another_optimizer_is_refused(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    workshop.fp["train"]["optim_g"] = {"type": "SGD", "lr": 0.1}
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 2
    assert "error: the saved optimizer state does not fit (it has other settings)" in capfd.readouterr().err


def test_finished_run_is_not_trained_again(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp) == 0
    before = workshop.network("fp", "g", 4)
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 0
    assert same(before, workshop.network("fp", "g", 4)) and same(before, workshop.network("fp", "g"))


def test_resume_state_by_name(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "name=reference") == 0
    assert workshop.train(workshop.fp) == 0
    assert workshop.train(workshop.fp, "path:resume_state=experiments/fp/training_states/2.state") == 0
    assert workshop.losses("fp") == workshop.losses("reference")
    assert same(workshop.network("fp", "g"), workshop.network("reference", "g"))


@pytest.mark.parametrize("damage", ["state flipped", "state truncated", "network flipped", "network missing"])
def test_damaged_states_are_passed_over(workshop: Workshop, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert workshop.train(workshop.fp) == 0
    reference = workshop.network("fp", "g", 4)
    kind, what = damage.split()
    path = workshop.experiment("fp") / ("training_states/4.state" if kind == "state" else "models/net_g_4.pth")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if what == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 3] if what == "truncated" else content)
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 0
    errors = capfd.readouterr().err
    assert "auto_resume passes over a state" in errors
    assert "resuming from 'experiments/fp/training_states/2.state'" in errors
    assert same(reference, workshop.network("fp", "g", 4))


def test_nothing_valid_starts_over_and_keeps_the_old_files(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    state = workshop.experiment("fp") / "training_states/2.state"
    state.write_bytes(state.read_bytes()[:100])
    assert workshop.train(workshop.fp, "train:total_iter=2", flags=["--auto_resume"]) == 0
    (archived,) = (workshop.folder / "experiments").glob("fp_archived_*")
    assert (archived / "models" / "net_g_2.pth").is_file()
    log = (workshop.experiment("fp") / "train_fp.log").read_text()
    assert "passes over a state" in log and "starting from the beginning" in log


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp64"])
def test_resume_in_other_precisions(workshop: Workshop, precision: str) -> None:
    workshop.fp["train"] |= {"precision": precision, "gradient_clip": 0.1, "accumulation": 2}
    assert workshop.train(workshop.fp, "name=reference") == 0
    assert workshop.train(workshop.fp) == 0
    (workshop.experiment("fp") / "training_states" / "4.state").unlink()
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 0
    assert same(workshop.network("fp", "g", 4), workshop.network("reference", "g", 4))
    dtype = torch.float64 if precision == "fp64" else torch.float32
    assert workshop.network("fp", "g", 4)["params"]["conv_first.weight"].dtype is dtype


def test_leftovers_of_a_killed_save_are_removed(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    leftover: Path = workshop.experiment("fp") / "models" / ".net_g_4.pth.0123abcd.tmp"
    leftover.write_bytes(b"half")
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 0
    assert not leftover.exists()
