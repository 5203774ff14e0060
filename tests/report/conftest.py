"""The workshop, for this folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from page_runs import tested_folder
from workshop import Workshop, test_options, workshop, workshop_data

__all__ = ["tested_folder", "workshop", "workshop_data"]


@pytest.fixture
def place(workshop: Workshop, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    for name in ("train.py", "test.py"):
        shutil.copy(repository / name, workshop.folder)
    monkeypatch.chdir(workshop.folder)
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    workshop.write(workshop.dqc, "train_it")
    workshop.write(test_options(workshop.dqc, "weights/fp.pth") | {"pathFP": {"pretrain_network_FP": "weights/fp.pth"}},
                   "test_it")
    return workshop
