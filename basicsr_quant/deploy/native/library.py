"""The compiled kernels as functions: loading them, and the layouts of what they take."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

import torch

from basicsr_quant.deploy.native import compiler
from basicsr_quant.deploy.native.compiler import CannotCompile, Level

logger = logging.getLogger("basicsr_quant")

SWITCH = "BASICSR_QUANT_NATIVE"


class GridLayout(Structure):
    """``Grid`` of common.h."""

    _fields_ = [("lower", c_float), ("upper", c_float), ("step", c_float), ("zero_point", c_float),
                ("reciprocal", c_float), ("levels", c_int32), ("rounding", c_int32)]


class LinearLayout(Structure):
    """``Linear`` of linear.c."""

    _fields_ = [("inputs", c_int64), ("outputs", c_int64), ("parts", c_int64), ("grids", POINTER(GridLayout)),
                *((name, c_void_p) for name in ("weight", "start", "centre", "scale", "row_scale", "constant",
                                                "norm_weight", "norm_bias")),
                ("norm_epsilon", c_float), ("gelu", c_int32)]


class ShapeLayout(Structure):
    """``Shape`` of binary_conv.c."""

    _fields_ = [(name, c_int64) for name in ("batch", "height", "width", "channels", "outputs", "kernel")]


class UnitLayout(Structure):
    """``Unit`` of binary_conv.c."""

    _fields_ = [*((name, c_void_p) for name in ("scale", "bias", "shift_in", "slope", "shift_out", "identity")),
                ("identity_first", c_int32)]


class AttentionLayout(Structure):
    """``Attention`` of attention.c."""

    _fields_ = [*((name, c_int64) for name in ("batch", "height", "width", "heads", "features", "window", "shift")),
                *((name, GridLayout) for name in ("query", "key", "value", "map")),
                ("factor", c_float), ("bias", c_void_p)]


_SIGNATURES = {
    "bq_linear": ([c_void_p, c_int64, POINTER(LinearLayout), c_void_p, c_void_p, c_void_p, c_int32], c_int32),
    "bq_quantize": ([c_void_p, c_int64, POINTER(GridLayout), c_void_p], None),
    "bq_binary_conv": ([c_void_p, POINTER(ShapeLayout), c_void_p, c_int32, c_void_p, c_void_p, c_void_p,
                        POINTER(UnitLayout), c_void_p, c_void_p, c_int32], c_int32),
    "bq_window_attention": ([c_void_p, POINTER(AttentionLayout), c_void_p, c_int32], c_int32),
}


class Library:
    """Loaded kernels.

    Args:
        level: What they were compiled for.

    Raises:
        CannotCompile: They cannot be compiled or loaded.
    """

    def __init__(self, level: Level) -> None:
        self.level = level.name
        path = compiler.compiled(level)
        try:
            loaded = ctypes.CDLL(str(path))
            for name, (arguments, result) in _SIGNATURES.items():
                function = getattr(loaded, name)
                function.argtypes, function.restype = arguments, result
        except (OSError, AttributeError) as error:
            raise CannotCompile(f"{path} cannot be loaded: {error}") from error
        self.linear, self.quantize = loaded.bq_linear, loaded.bq_quantize
        self.binary_conv, self.window_attention = loaded.bq_binary_conv, loaded.bq_window_attention


@functools.cache
def load_level(name: str) -> Library:
    """Return the kernels of one of :func:`usable_levels`.

    Raises:
        CannotCompile: They cannot be compiled or loaded.
    """
    return Library(next(level for level in compiler.usable_levels() if level.name == name))


def usable_levels() -> list[str]:
    """Return the names of the levels that this processor can run, the fastest first."""
    return [level.name for level in compiler.usable_levels()]


@functools.cache
def _best() -> Library | None:
    try:
        return load_level(usable_levels()[0])
    except CannotCompile as error:
        logger.warning("native kernels are not used: %s", error)
        return None


def available() -> bool:
    """Return whether there are kernels: a compiler, or what it made before, and no switch in the way."""
    return os.environ.get(SWITCH, "1") != "0" and _best() is not None


def best_kernels() -> Library:
    """Return the kernels for this processor.

    Raises:
        RuntimeError: They are not :func:`available`.
    """
    best = _best() if available() else None
    if best is None:
        raise RuntimeError("native kernels are not available")
    return best


def address(tensor: torch.Tensor | None) -> int | None:
    """Return where a contiguous tensor's values begin; None is the null pointer."""
    return None if tensor is None else tensor.data_ptr()


def float_rows(x: torch.Tensor) -> torch.Tensor:
    """Return a contiguous float32 tensor without history.

    Raises:
        ValueError: ``x`` is of another type or not on the CPU.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(f"native kernels take float32 on the CPU, found {x.dtype} on {x.device}")
    return x.detach().contiguous()
