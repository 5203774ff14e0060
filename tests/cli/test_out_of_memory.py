"""Memory that does not suffice: one line that names the options to change, an exit code, no traceback."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import ranks
import scarce_memory
import torch
from workshop import Workshop, error_lines, make_pairs, same, test_options

from basicsr_quant.cli.main import guarded
from basicsr_quant.errors import is_out_of_memory

SPARE = 100 * 2**20


def fail(error: BaseException) -> Callable[[], object]:
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize("function", [
    lambda: torch.empty(2**61, dtype=torch.uint8), lambda: torch.empty(2**62), lambda: np.empty(2**60, np.uint8),
    lambda: bytearray(2**62), lambda: cv2.copyMakeBorder(np.zeros((1, 1), np.uint8), 0, 2**30, 0, 2**30, 0),
    fail(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    fail(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
    fail(RuntimeError("std::bad_alloc")), fail(OSError(errno.ENOMEM, "Cannot allocate memory")),
], ids=["torch", "torch size", "numpy", "python", "opencv", "cuda", "cublas", "c++", "fork"])
def test_every_kind_is_one_line(function: Callable[[], object], capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        function()

    assert guarded(run) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: out of memory; ")
    for option in ("datasets:train:batch_size_per_gpu", "gt_size", "train:precision=bf16", "val:tile", "--tile"):
        assert option in line


def test_a_defect_keeps_its_traceback() -> None:
    defect = RuntimeError("shapes do not match")
    assert not is_out_of_memory(defect)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        guarded(fail(defect))


def test_batch_that_is_too_large(workshop: Workshop) -> None:
    """What was saved before is intact, and a smaller batch goes on from there."""
    workshop.fp["datasets"]["train"]["gt_size"] = 32
    assert workshop.train(workshop.fp, "train:total_iter=2", "val=~") == 0
    before = workshop.network("fp", "g", 2)
    resume = "path:resume_state=experiments/fp/training_states/2.state"
    code, errors = scarce_memory.run(workshop, workshop.fp, resume, "datasets:train:batch_size_per_gpu=512",
                                     spare=SPARE)
    (line,) = error_lines(errors)
    assert code == 2 and line.startswith("error: out of memory; to train, lower datasets:train:batch_size_per_gpu")
    assert same(workshop.network("fp", "g", 2), before)
    code, errors = scarce_memory.run(workshop, workshop.fp, resume, spare=SPARE)
    assert code == 0, errors


def test_image_that_is_too_large(workshop: Workshop) -> None:
    """With the option that the line names it can be restored in the same memory."""
    make_pairs(workshop.folder / "data" / "large", 1, 9, 1200, 1200)
    tested = test_options(workshop.fp, "weights/fp.pth")
    tested["datasets"]["test_1"] = {"name": "large", "dataroot_lq": "data/large/LR"}
    code, errors = scarce_memory.run(workshop, tested, spare=SPARE, testing=True)
    (line,) = error_lines(errors)
    assert code == 2 and "im0x2.png' (600x600) does not fit into memory" in line and "val:tile=" in line
    code, errors = scarce_memory.run(workshop, tested, "val:tile=200", "val:tile_overlap=8", spare=SPARE, testing=True)
    assert code == 0, errors


def test_killed_loader_worker(workshop: Workshop) -> None:
    """As the kernel does when memory runs out."""
    workshop.fp["train"]["total_iter"] = 10_000
    job = ranks.start(workshop, workshop.fp, "datasets:train:num_worker_per_gpu=1", "val=~", count=1)
    process = job.processes[0].pid
    log = workshop.experiment("fp") / "train_fp.log"
    while not (log.is_file() and "iteration 3/" in log.read_text()):
        assert job.processes[0].is_alive(), job.wait()
        time.sleep(0.01)
    assert process is not None
    (worker,) = ranks.children(process)
    os.kill(worker, signal.SIGKILL)
    codes, errors = job.wait()
    (line,) = [line for line in error_lines(errors) if not line.startswith("[")]
    assert codes == [2] and line.startswith("error: a worker that loads images was killed")
    assert "num_worker_per_gpu" in line and "--auto_resume" in line
