"""Training states and their networks, damaged in every way: ``--auto_resume`` goes back to the newest whole one."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from workshop import Workshop, error_lines, load, same

from basicsr_quant.engine.checkpoint import newest_valid, progress_of, read_state
from basicsr_quant.errors import UserError

SIXTEENTHS = [part / 16 for part in range(16)]


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def run(workshop: Workshop) -> Path:
    """An experiment with states 2 and 4."""
    assert workshop.train(workshop.fp, "val=~") == 0
    return workshop.experiment("fp")


def assert_falls_back(run: Path, reference: dict[str, Any], harmed: Path, data: bytes) -> bool:
    """Whether ``--auto_resume`` would go back to state 2, and says why; if not, state 4 must be whole."""
    sound = harmed.read_bytes()
    harmed.write_bytes(data)
    try:
        path, state, reasons = newest_valid(run)
    finally:
        harmed.write_bytes(sound)
    assert path is not None and state is not None
    if path.stem == "4":
        assert same(state, reference) and not reasons
        return False
    assert path.stem == "2" and state["iteration"] == 2
    (reason,) = reasons
    assert harmed.name in reason and "\n" not in reason
    return True


@pytest.mark.parametrize("name", ["training_states/4.state", "models/net_g_4.pth"])
def test_newest_valid_state(run: Path, name: str) -> None:
    """Truncated at every sixteenth, emptied, replaced, and a bit flipped anywhere."""
    data, reference = (run / name).read_bytes(), load(run / "training_states/4.state")
    for part in SIXTEENTHS:
        assert assert_falls_back(run, reference, run / name, data[: int(part * len(data))]), part
    assert assert_falls_back(run, reference, run / name, (run / name.replace("4", "2")).read_bytes()[:-1])
    assert assert_falls_back(run, reference, run / name, b"PK\x03\x04 no archive")
    draw = random.Random(9)
    bits = [draw.randrange(8 * len(data)) for _ in range(16)]
    noticed = sum(assert_falls_back(run, reference, run / name, flipped(data, bit)) for bit in bits)
    assert noticed == 16 if name.endswith(".pth") else noticed > 8


def test_states_with_missing_or_odd_entries(run: Path) -> None:
    """Any entry left out, or of another type, is one line that names the file, or makes no difference."""
    path = run / "training_states/4.state"
    sound = load(path)
    for key in sound:
        for value in ("left out", None, -1, "text", [{}]):
            altered = {name: item for name, item in sound.items() if name != key}
            torch.save(altered if value == "left out" else altered | {key: value}, path)
            try:
                progress_of(read_state(path))
            except UserError as error:
                assert "4.state" in str(error) and "\n" not in str(error)
            else:
                assert (key, value) in [("skipped", "left out"), ("options", "text")], (key, value)


@pytest.mark.parametrize("name", ["training_states/4.state", "models/net_g_4.pth"])
def test_pickled_code_is_passed_over(run: Path, tmp_path: Path, name: str) -> None:
    torch.save(load(run / name) | {"extra": Hostile(tmp_path / "it_ran")}, run / name)
    path, _, (reason,) = newest_valid(run)
    assert path is not None and path.stem == "2" and Path(name).name in reason
    assert not (tmp_path / "it_ran").exists()


def test_auto_resume_goes_back_and_says_so(
    run: Path, workshop: Workshop, capfd: pytest.CaptureFixture[str],
) -> None:
    """Both newest states are damaged, each in its own way; the end is the same to the bit."""
    assert workshop.train(workshop.fp, "val=~", "train:total_iter=8", "name=whole") == 0
    assert workshop.train(workshop.fp, "val=~", "train:total_iter=8", flags=["--auto_resume"]) == 0
    state, network = run / "training_states/8.state", run / "models/net_g_6.pth"
    state.write_bytes(state.read_bytes()[:100])
    network.write_bytes(flipped(network.read_bytes(), 8 * 4000))
    capfd.readouterr()
    assert workshop.train(workshop.fp, "val=~", "train:total_iter=8", flags=["--auto_resume"]) == 0
    errors = capfd.readouterr().err
    assert errors.index("passes over a state: 'experiments/fp/training_states/8.state' is truncated") < errors.index(
        "passes over a state: 'experiments/fp/models/net_g_6.pth' is not the file") < errors.index(
        "resuming from 'experiments/fp/training_states/4.state'")
    assert same(workshop.network("fp", "g", 8), workshop.network("whole", "g", 8))


def test_state_of_another_method(run: Path, workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert workshop.train(workshop.dqc, "name=fp", flags=["--auto_resume"]) == 2
    (line,) = error_lines(capfd.readouterr().err)
    assert "experiments/fp/models/net_Q_4.pth" in line and "trained no network 'Q'" in line


def test_state_of_another_precision(run: Path, workshop: Workshop) -> None:
    """A scaler begins anew."""
    assert workshop.train(workshop.fp, "val=~", "train:total_iter=6", "train:precision=fp16",
                          flags=["--auto_resume"]) == 0
    assert workshop.state("fp", 6)["scaler"] and not workshop.state("fp", 4)["scaler"]
