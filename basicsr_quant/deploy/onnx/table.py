"""How torch's operators are written in ONNX, shapes being fixed.

A handler gets the graph, what the operator returns (a tensor without values, for its shape), and its arguments; it
returns the name of the result, or a list of names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from basicsr_quant.deploy.onnx.graph import Value

Operand = Value | torch.Tensor
Handler = Callable[..., Any]
_TABLE: dict[str, Handler] = {}
_BUILT_IN = ("layout_operators", "numeric_operators")


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Enter a function under names of torch's operators."""
    def enter(handler: Handler) -> Handler:
        _TABLE.update(dict.fromkeys(names, handler))
        return handler

    return enter


def handlers() -> dict[str, Handler]:
    """Return the table: name of an operator, without its namespace, overload and trailing underscore -> handler."""
    for name in _BUILT_IN:
        importlib.import_module(f"basicsr_quant.deploy.onnx.{name}")
    return _TABLE


def pair(numbers: int | Sequence[int]) -> list[int]:
    """Return an option of a convolution for height and width."""
    found = [numbers] if isinstance(numbers, int) else list(numbers)
    return found * 2 if len(found) == 1 else found
