"""No space, a limit, a read-only disk: one line, exit code 2, earlier checkpoints whole, and the run can go on."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import FileFaults
from workshop import REPOSITORY, Workshop, error_lines, same

from basicsr_quant.engine import events
from basicsr_quant.engine.checkpoint import newest_valid

REFUSALS = {number: OSError(number, os.strerror(number))
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)}
OPERATIONS = 30
"""More than the second half of the training below needs."""


def refuse(number: int) -> Callable[[], None]:
    def harm() -> None:
        raise REFUSALS[number]

    return harm


@pytest.fixture
def half(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> Workshop:
    """A workshop with a whole run, ``reference``, and one of the same options that ended half way."""
    workshop.fp["val"]["val_freq"] = 1
    assert workshop.train(workshop.fp, "name=reference") == 0
    assert workshop.train(workshop.fp, "train:total_iter=2") == 0
    capfd.readouterr()
    return workshop


def assert_one_line(code: int, errors: str, *parts: str) -> None:
    assert code == 2, errors
    (line,) = error_lines(errors)
    assert line.startswith("error: cannot write ") and all(part in line for part in parts), line


def assert_whole(run: Path, contents: dict[Path, bytes]) -> None:
    """What was saved is as it was; the newest state is valid; nothing half-written lies about."""
    assert all(path.read_bytes() == data for path, data in contents.items())
    path, _, reasons = newest_valid(run)
    assert path is not None and int(path.stem) >= 2 and not reasons
    assert not list(run.rglob("*.tmp"))


def saved(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in [*run.glob("models/*_2.pth"), *run.glob("training_states/*")]}


def assert_resumes(workshop: Workshop) -> None:
    assert workshop.train(workshop.fp, flags=["--auto_resume"]) == 0
    for tag in (4, "best", "latest"):
        assert same(workshop.network("fp", "g", tag), workshop.network("reference", "g", tag)), tag
    mine, theirs = (workshop.state(name, 4) for name in ("fp", "reference"))
    assert all(same(mine[key], theirs[key]) for key in theirs if key != "options")
    assert workshop.losses("fp") == workshop.losses("reference")


def train_until_refused(workshop: Workshop, place: int, number: int) -> tuple[int, int]:
    """Train with one operation on a file refused; return the exit code and how many there were."""
    faults = FileFaults(place, refuse(number))
    with pytest.MonkeyPatch.context() as patch:
        faults.install(lambda target, name, value: patch.setattr(target, name, value, raising=False))
        code = workshop.train(workshop.fp, flags=["--auto_resume"])
    return code, faults.count


def refuse_each(workshop: Workshop, capfd: pytest.CaptureFixture[str], places: list[int]) -> int:
    """Refuse one operation after another in resumed trainings; return how many were refused."""
    run, refused, draw = workshop.experiment("fp"), 0, random.Random(4)
    contents = saved(run)
    for place in places:
        number = draw.choice(list(REFUSALS))
        code, _ = train_until_refused(workshop, place, number)
        errors = capfd.readouterr().err
        if code:
            refused += 1
            assert_one_line(code, errors, os.strerror(number))
        assert_whole(run, contents)
        if code == 0:
            for path in [*run.glob("training_states/4.state"), *run.glob("models/*_4.pth")]:
                path.unlink()
    return refused


def test_one_operation_is_refused(half: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """The half-written file, the flush or the rename of options, best, networks, state."""
    assert refuse_each(half, capfd, [1, 4, 8, 12]) == 4
    assert_resumes(half)


@pytest.mark.slow
def test_each_operation_is_refused(half: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    assert refuse_each(half, capfd, list(range(1, OPERATIONS))) >= 12
    assert_resumes(half)


def test_the_log_cannot_be_written(half: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """/dev/full in its place."""
    log = half.experiment("fp") / "train_fp.log"
    contents = saved(half.experiment("fp"))
    log.rename(log.with_suffix(".kept"))
    log.symlink_to("/dev/full")
    code = half.train(half.fp, flags=["--auto_resume"])
    assert_one_line(code, capfd.readouterr().err, "the log", "train_fp.log", "No space left on device")
    log.unlink()
    log.with_suffix(".kept").rename(log)
    assert_whole(half.experiment("fp"), contents)
    assert_resumes(half)


@pytest.mark.parametrize("bytes_left", [0, 300])
def test_tensorboard_cannot_be_written(
    half: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bytes_left: int,
) -> None:
    """Its file takes some bytes, and then no more."""

    class Full:
        def __init__(self, path: Path, mode: str, buffering: int) -> None:
            self.left = bytes_left
            self.file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115

        def write(self, data: Any) -> int:
            written = min(self.left, len(data))
            self.left -= written
            return written or self.file.write(data)

        def close(self) -> None:
            self.file.close()

    contents = saved(half.experiment("fp"))
    monkeypatch.setattr(events, "open", Full, raising=False)
    code = half.train(half.fp, "logger:use_tb_logger=true", flags=["--auto_resume"])
    assert_one_line(code, capfd.readouterr().err, "the TensorBoard log", "No space left on device", "use_tb_logger")
    assert_whole(half.experiment("fp"), contents)
    assert_resumes(half)


def test_a_file_in_the_place_of_a_folder(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """As for a user who may not write there: refused before anything is trained."""
    for key in ("path:tb_root", "path:experiments_root"):
        Path("in_the_way").write_text("")
        assert workshop.train(workshop.fp, "logger:use_tb_logger=true", f"{key}=in_the_way") == 2
        (line,) = error_lines(capfd.readouterr().err)
        assert "cannot write" in line and "in_the_way" in line and key in line


SCRIPT = """
set -e
mount -t tmpfs -o size={size}k none {folder}/experiments
cp -r {folder}/kept {folder}/experiments/fp
head -c {fill} /dev/zero > {folder}/experiments/filler || true
set +e
cd {folder}
{python} {repository}/train.py -opt fp.yml --auto_resume \\
  --force_yml logger:use_tb_logger=true path:tb_root=experiments/tb
code=$?
cp -r experiments/fp {folder}/after
exit $code
"""


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 8, 40, 120, 200])
def test_a_disk_that_is_full(half: Workshop, free: int) -> None:
    """A real one, of which ``free`` kB are left when the training resumes."""
    if not can_mount():
        pytest.skip("this user may not mount a file system of his own")
    run = half.experiment("fp")
    run.rename(half.folder / "kept")
    contents = {path.name: data for path, data in saved(half.folder / "kept").items()}
    used = sum(-(-path.stat().st_size // 4096) * 4 for path in (half.folder / "kept").rglob("*") if path.is_file())
    half.write(half.fp)
    script = SCRIPT.format(size=used + 512, fill=1024 * (512 - free - 8), folder=half.folder, python=sys.executable,
                           repository=REPOSITORY)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=280,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"})
    assert_one_line(done.returncode, done.stderr, "No space left on device")
    after = half.folder / "after"
    assert {path.name: path.read_bytes() for path in after.rglob("*") if path.name in contents} == contents
    assert not list(after.rglob("*.tmp"))
    after.rename(run)
    assert_resumes(half)
