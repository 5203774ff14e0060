"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of the parity numbers."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the sample data, named by SR_DATA_ROOT; the test is skipped without it."""
    root = os.environ.get("SR_DATA_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("SR_DATA_ROOT names no folder of sample data")
    return Path(root)


@pytest.fixture(autouse=True)
def no_log_left_behind() -> Iterator[None]:
    """Take away the log handlers that a test's commands put up; they write to streams that end with the test."""
    yield
    logger = logging.getLogger("basicsr_quant")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
