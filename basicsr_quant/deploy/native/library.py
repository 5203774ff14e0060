"""The compiled kernels as functions: loading them, and the layouts of what they take."""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

import torch

from basicsr_quant.deploy.native import compiler
from basicsr_quant.deploy.native.compiler import CannotCompile, Level

SWITCH = "BASICSR_QUANT_NATIVE"


class GridLayout(Structure):
    """``Grid`` of common.h."""

    _fields_ = [("lower", c_float), ("upper", c_float), ("step", c_float), ("zero_point", c_float),
                ("reciprocal", c_float), ("levels", c_int32), ("rounding", c_int32)]


class LinearLayout(Structure):
    """``Linear`` of linear.h."""

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


class FrameLayout(Structure):
    """``Frame`` of attention.h."""

    _fields_ = [(name, c_int64) for name in ("batch", "height", "width", "window", "shift")]


class AttentionLayout(Structure):
    """``Attention`` of attention.h."""

    _fields_ = [*((name, c_int64) for name in ("heads", "features", "tokens")), ("grids", GridLayout * 3),
                ("map", GridLayout), ("factor", c_float), ("bias", c_void_p)]


class SwinBlockLayout(Structure):
    """``SwinBlock`` of swin_block.c."""

    _fields_ = [*((name, POINTER(LinearLayout)) for name in ("qkv", "proj", "fc1", "fc2")),
                ("attention", POINTER(AttentionLayout))]


_SIGNATURES = {
    "bq_linear": ([c_void_p, c_int64, POINTER(LinearLayout), c_void_p, c_void_p, c_void_p, c_int32], c_int32),
    "bq_quantize": ([c_void_p, c_int64, POINTER(GridLayout), c_void_p], None),
    "bq_add_sums": ([c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int32], None),
    "bq_binary_conv": ([c_void_p, POINTER(ShapeLayout), c_void_p, c_int32, c_void_p, c_void_p, c_void_p,
                        POINTER(UnitLayout), c_void_p, c_void_p, c_int32], c_int32),
    "bq_window_attention": ([c_void_p, POINTER(FrameLayout), POINTER(AttentionLayout), c_void_p, c_int32], c_int32),
    "bq_swin_block": ([c_void_p, POINTER(FrameLayout), POINTER(SwinBlockLayout), c_void_p, c_int32], c_int32),
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
        self.linear, self.quantize, self.add_sums = loaded.bq_linear, loaded.bq_quantize, loaded.bq_add_sums
        self.binary_conv, self.window_attention = loaded.bq_binary_conv, loaded.bq_window_attention
        self.swin_block = loaded.bq_swin_block


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
def _best() -> Library | CannotCompile:
    try:
        return load_level(usable_levels()[0])
    except CannotCompile as error:
        return error


def missing() -> str | None:
    """Return why there are no kernels, or None: there is a compiler or what it made before, and they are not off."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH}=0 switches it off"
    best = _best()
    return str(best) if isinstance(best, CannotCompile) else None


def available() -> bool:
    """Return whether nothing is :func:`missing`."""
    return missing() is None


def best_kernels() -> Library:
    """Return the kernels for this processor.

    Raises:
        RuntimeError: Something is :func:`missing`.
    """
    lacking, best = missing(), _best()
    if lacking is not None or isinstance(best, CannotCompile):
        raise RuntimeError(f"there are no native kernels: {lacking}")
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
