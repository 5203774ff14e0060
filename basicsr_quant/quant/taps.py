"""Taps: the outputs of named modules during a forward pass."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from basicsr_quant.errors import UserError


class FeatureTaps:
    """Context in which the outputs of some modules are kept; the hooks are gone afterwards.

    Args:
        model: Any module.
        names: Names of modules, in the order in which :meth:`take` returns their outputs.

    Raises:
        UserError: There is no such module.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        for name in names:
            if name not in modules:
                raise UserError(f"feature tap '{name}' names no module of the network")
        self._modules = {name: modules[name] for name in names}
        self._outputs: dict[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> FeatureTaps:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keeper(name)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def _keeper(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._outputs[name] = output

        return hook

    def take(self) -> list[torch.Tensor]:
        """Return the outputs of the last forward pass.

        Raises:
            UserError: A module did not run.
        """
        for name in self._modules:
            if name not in self._outputs:
                raise UserError(f"feature tap '{name}' is no part of the forward pass; tap a module that is")
        return [self._outputs[name] for name in self._modules]


def match_modules(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the modules that match any of the patterns, in module order.

    Args:
        model: Any module.
        patterns: fnmatch patterns, level by level: ``body.*`` is the children of ``body``, not what is inside them.

    Raises:
        UserError: A pattern matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise UserError(f"feature tap '{pattern}' matches no module of the network; '*' stands within one level")
    return [name for name in names if any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    levels, wanted = name.split("."), pattern.split(".")
    return len(levels) == len(wanted) and all(map(fnmatch.fnmatchcase, levels, wanted))
