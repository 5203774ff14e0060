"""Blocks of a network in the order in which they run, and what goes in and comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.bounds import matches
from basicsr_quant.quant.foreign import inner_network
from basicsr_quant.quant.layers.linear import SplitLinear
from basicsr_quant.quant.layers.weighted import QuantWeighted

Forward = Callable[[nn.Module, Any], object]


@torch.no_grad()
def blocks_in_order(model: nn.Module, batch: Any, forward: Forward, patterns: Sequence[str] = ()) -> list[str]:
    """Return the names of blocks in the order in which they first run; what does not run is left out.

    Args:
        model: Prepared model.
        batch: One calibration batch.
        forward: Called with the model and a batch, to run it.
        patterns: fnmatch patterns on module names, ``*`` matches dots too. A module that matches is one block, with all
            that is inside; of modules inside each other the outermost counts. Every other quantized layer with a weight
            is a block of its own.

    Raises:
        UserError: A pattern matches no module.
    """
    network = inner_network(model)
    names = [name for name, _ in network.named_modules()]
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            raise UserError(f"block pattern '{pattern}' matches no module of the network")
    chosen: list[str] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{block}.") for block in chosen)
        if name and not inside and (matches(name, patterns) or isinstance(module, (QuantWeighted, SplitLinear))):
            chosen.append(name)
    order: dict[str, None] = {}

    def enter(name: str) -> Callable[..., None]:
        return lambda module, inputs: order.setdefault(name)

    handles = [network.get_submodule(name).register_forward_pre_hook(enter(name)) for name in chosen]
    try:
        forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


@dataclass
class Call:
    """A block's first call in one forward pass, its tensors on the CPU.

    Attributes:
        arguments: By position.
        keywords: By name.
        output: What it returned; the first item if that is a tuple.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: torch.Tensor


class _Reached(Exception):
    """The block has run; the rest of the network need not."""


@torch.no_grad()
def first_call(model: nn.Module, name: str, batch: Any, forward: Forward) -> Call:
    """Run a model as far as a block and return the block's call.

    Args:
        model: Any.
        name: Of the block, within :func:`inner_network`.
        batch: Input.
        forward: Called with the model and the batch.

    Raises:
        UserError: The block did not run.
    """
    found: list[Call] = []

    def hook(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        found.append(Call(*_mapped((arguments, keywords, tensor_of(output)), _on_cpu)))
        raise _Reached

    with _hooked(inner_network(model).get_submodule(name), hook):
        try:
            forward(model, batch)
        except _Reached:
            return found[0]
    raise UserError(f"block '{name}' is no part of the forward pass; leave it out by 'none' in the plan")


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def tensor_of(output: Any) -> torch.Tensor:
    """Return a block's output, the first item of a tuple."""
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def joined(calls: Sequence[Call], device: torch.device) -> Call:
    """Return several calls as one on a device: tensors joined along the batch, all else as in the first call."""
    parts = [(call.arguments, call.keywords, call.output) for call in calls]
    return Call(*_joined(parts, device))


def _joined(parts: Sequence[Any], device: torch.device) -> Any:
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return (torch.cat(list(parts)) if first.dim() else first).to(device)
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(items, device) for items in zip(*parts, strict=True))
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], device) for key in first}
    return first


def _mapped(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    return value


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
