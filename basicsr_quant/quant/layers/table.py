"""Which quantized module takes the place of which ordinary one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import nn

from basicsr_quant.quant.recipe import Recipe

_TABLE: dict[type[nn.Module], Callable[[nn.Module, Recipe], nn.Module]] = {}
_BUILT_IN = ("linear", "conv2d", "operand")


class FromModule(Protocol):
    """A quantized module class is made from the module that it replaces."""

    @classmethod
    def from_module(cls, module: Any, recipe: Recipe) -> nn.Module:
        """Return the quantized module; it takes over the parameters themselves, not copies."""


T = TypeVar("T", bound=FromModule)


def register_quant_module(replaced: type[nn.Module]) -> Callable[[type[T]], type[T]]:
    """Class decorator: modules of exactly the type ``replaced`` are quantized by the decorated class."""

    def decorate(cls: type[T]) -> type[T]:
        _TABLE[replaced] = cls.from_module
        return cls

    return decorate


def table() -> dict[type[nn.Module], Callable[[nn.Module, Recipe], nn.Module]]:
    """Return the register: ordinary type -> maker of its quantized counterpart."""
    for name in _BUILT_IN:
        importlib.import_module(f"basicsr_quant.quant.layers.{name}")
    return _TABLE
