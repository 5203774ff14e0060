"""Loops compiled by numba (extra ``[fast]``): whether they may be used, and the threads that they run in.

``BASICSR_QUANT_NUMBA=0`` in the environment switches them off.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TypeVar

import torch

logger = logging.getLogger("basicsr_quant")

SWITCH = "BASICSR_QUANT_NUMBA"
Piece = TypeVar("Piece")
Result = TypeVar("Result")


@functools.cache
def _available() -> bool:
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module("numba")
    except ImportError as error:
        logger.warning("numba cannot be imported (%s); everything goes on in plain torch", error)
        return False
    return True


def switched_on() -> bool:
    """Return whether numba is installed and not switched off."""
    return os.environ.get(SWITCH, "1") != "0" and _available()


@functools.cache
def kernels(name: str) -> ModuleType:
    """Return a module of kernels, imported on first use; only where :func:`switched_on`."""
    return importlib.import_module(name)


@functools.cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Return threads that live as long as the process; a fork has none of its parent's, so it gets its own."""
    return ThreadPoolExecutor(workers, thread_name_prefix="basicsr_quant")


def thread_count(elements: int, piece: int) -> int:
    """Return how many of torch's threads a tensor keeps busy with at least ``piece`` elements each."""
    return max(min(torch.get_num_threads(), elements // piece), 1)


def in_threads(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """Return the results for all pieces, each in a thread of its own, the first in the caller's."""
    if len(pieces) == 1:
        return [function(pieces[0])]
    others = [_pool(len(pieces) - 1, os.getpid()).submit(function, piece) for piece in pieces[1:]]
    return [function(pieces[0]), *(other.result() for other in others)]
