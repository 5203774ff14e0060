"""Where NaN or infinite values begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from basicsr_quant.engine.distributed import Process
from basicsr_quant.io.weights import first_not_finite, is_finite
from basicsr_quant.models.base import Batch

GRADIENT = "the gradient"


def describe(bad: list[str], step: nn.Module, batches: Sequence[Batch],
             autocast: Callable[[], AbstractContextManager[Any]], process: Process) -> tuple[str, bool]:
    """Say what is not finite in an iteration; every process calls this, and all get the same answer.

    Args:
        bad: Losses that are not finite on this process, or :data:`GRADIENT`.
        step: What trains, its gradients still there.
        batches: To be run again in search of the first tensor; none for no search.
        autocast: Gives the context of a forward.
        process: This process.

    Returns:
        Words, and whether a weight itself is not finite.
    """
    weight = first_not_finite(step.named_parameters())
    where = f"weight '{weight}'" if weight is not None else _origin(step, batches, autocast) if bad else None
    found = [(names[0], where, rank) for rank, (names, where) in enumerate(process.gather((bad, where))) if names]
    name, where, rank = min(found, key=lambda entry: entry[0] == GRADIENT)  # a loss makes the gradients of all bad
    owner = f" of process {rank}" if process.world_size > 1 and name != GRADIENT else ""
    begin = f"; it begins at {where}" if where is not None else ""
    return f"{name}{owner} is NaN or infinite{begin}", weight is not None


def _origin(step: nn.Module, batches: Sequence[Batch],
            autocast: Callable[[], AbstractContextManager[Any]]) -> str | None:
    """Return the first tensor that is not finite: of the batches, of another forward, of the gradients."""
    for batch in batches:
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and not is_finite(value):
                return f"the images '{name}'"
    found: list[str] = []
    handles = [module.register_forward_hook(_watcher(found, name)) for name, module in step.named_modules() if name]
    try:
        for batch in batches:
            with torch.no_grad(), autocast():
                step(batch)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of '{found[0]}'"
    # gradients come from behind: the last parameter is the one that was reached first
    reached = [name for name, parameter in step.named_parameters()
               if parameter.grad is not None and not is_finite(parameter.grad)]
    return f"the gradient of '{reached[-1]}'" if reached and batches else None


def _watcher(found: list[str], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and not all(map(is_finite, _tensors(output))):
            found.append(name)

    return watch


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)
