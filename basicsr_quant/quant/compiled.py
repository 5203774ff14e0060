"""How kernels are compiled; numba is imported with this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile on first use, from the cache of an earlier process if there is a folder to keep one in.

    Kernels release the interpreter's lock. Without ``fastmath`` floating-point operations are neither reordered nor
    contracted, so that every value is that of the same expression in torch.

    Args:
        function: In the subset of Python that numba compiles.
        options: Further ones of ``numba.njit``.
    """
    try:
        kernel: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
    except RuntimeError:
        kernel = numba.njit(nogil=True, error_model="numpy", **options)(function)
    return kernel


def _sum(first: float, second: float) -> float:
    """Return the sum; only here may terms be added in another order, which is what lets a loop run on vectors."""
    return first + second


add = compiled(_sum, fastmath={"reassoc"})
