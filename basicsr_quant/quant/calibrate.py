"""Calibration: every quantizer's bounds from data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.layers.weighted import weighted_layers
from basicsr_quant.quant.observers.base import Observer, Target
from basicsr_quant.quant.quantizer import Quantizer, State
from basicsr_quant.quant.reduction import same_everywhere
from basicsr_quant.registry import OBSERVERS

logger = logging.getLogger("basicsr_quant")


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Yield the names and modules of all quantizers, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            yield name, module


def activation_quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Yield the names and modules of all quantizers but those of weights and biases, in module order."""
    fixed = {id(quantizer) for _, layer in weighted_layers(model) for _, quantizer, _ in layer.rounded_parameters()}
    for name, quantizer in named_quantizers(model):
        if id(quantizer) not in fixed:
            yield name, quantizer


def activation_names(model: nn.Module) -> list[str]:
    """Return the names of :func:`activation_quantizers`, as the patterns that select what learns."""
    return [name for name, _ in activation_quantizers(model)]


def set_state(model: nn.Module, state: State) -> None:
    """Put all quantizers of a model in one state."""
    for _, quantizer in named_quantizers(model):
        quantizer.state = state


@dataclass
class Watch:
    """One quantizer under observation.

    Attributes:
        name: Of the quantizer.
        quantizer: Whose watcher this is.
        observer: Is shown what the quantizer sees. None once the bounds are set, as its tables, lying between large
            tensors in memory, would keep the holes from being used again.
        followers: Quantizers that get the same bounds.
        number: Of the observer's pass.
        at_once: Whether the first tensor is all that there is, so that the observer gets all its passes over it.
        calls: Tensors seen.
    """

    name: str
    quantizer: Quantizer
    observer: Observer | None
    followers: Sequence[Quantizer] = ()
    number: int = 0
    at_once: bool = False
    calls: int = 0

    def __call__(self, x: torch.Tensor) -> None:
        """Show a tensor to the observer."""
        self.calls += 1
        if self.observer is None:
            return
        if self.at_once:
            run_passes(self.observer, [x])
            self.take_bounds()
        else:
            self.observer.update(x, self.number)

    @property
    def passes(self) -> int:
        """How many passes the observer still wants."""
        return 0 if self.observer is None else self.observer.passes

    def finish(self, number: int) -> None:
        """End a pass."""
        if self.observer is not None and self.observer.seen:
            self.observer.finish(number)

    def start_over(self) -> None:
        """Take a new observer, for tensors that come one by one."""
        self.observer, self.at_once = make_observer(self.quantizer, self.name), False

    def take_bounds(self) -> None:
        """Set the bounds of the quantizer and of its followers to what the observer says, unless it was done before.

        Raises:
            UserError: It saw no data.
        """
        if self.observer is None:
            return
        if not self.observer.seen:
            raise UserError(f"calibration: '{self.name}' saw no data; is its module part of the forward pass?")
        lower, upper = self.observer.bounds()
        for quantizer in (self.quantizer, *self.followers):
            quantizer.set_bounds(lower, upper)
        self.observer = None


def run_passes(observer: Observer, tensors: Sequence[torch.Tensor]) -> None:
    """Show tensors that are all at hand to an observer, in all its passes."""
    for number in range(observer.passes):
        for tensor in tensors:
            observer.update(tensor, number)
        observer.finish(number)


def make_observer(quantizer: Quantizer, where: str) -> Observer:
    """Return the observer that a quantizer's recipe names.

    Raises:
        UserError: The recipe's arguments do not suit it; ``where`` names the quantizer.
    """
    spec = quantizer.recipe.observer
    target = Target(quantizer.bits, quantizer.grid, quantizer.channel_axis)
    try:
        observer: Observer = OBSERVERS.build(spec.type, target, **spec.arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: observer {spec.describe()}: {error}") from error
    return observer


@torch.no_grad()
def calibrate(model: nn.Module, batches: Sequence[torch.Tensor], *,
              forward: Callable[[torch.Tensor], object] | None = None,
              on_progress: Callable[[int, int], None] | None = None, allow_degenerate: bool = False) -> None:
    """Set the bounds of every quantizer and switch them all on.

    Weights are observed where they are; activations in forward passes in which nothing is rounded, so that all
    statistics are those of the full-precision network. Observers that need several passes over several batches cost as
    many forwards; over one batch everything happens in one forward, but for modules that run several times in it.

    Args:
        model: Prepared model, in the mode (train or eval) in which it shall be observed.
        batches: Inputs on the model's device, seen in order. Each pass must see the same tensors.
        forward: Runs the model on one batch; default ``model(batch)``.
        on_progress: Called with (forwards done, forwards to do).
        allow_degenerate: Warn, rather than refuse, where bounds are equal or crossed.

    Raises:
        UserError: An observer saw no data, the bounds of a layer are NaN, equal or crossed, or processes have different
            numbers of batches.
    """
    if not same_everywhere(len(batches), next(model.parameters()).device):
        raise UserError("calibration: processes have different numbers of batches; give each the same")
    forward = forward or model
    calibrate_weights(model)
    watches = watches_of(model, at_once=len(batches) == 1)
    set_state(model, State.OFF)
    observe(watches, batches, forward, on_progress)
    for watch in watches:
        watch.take_bounds()
    set_state(model, State.QUANTIZE)
    check_bounds(model, "calibration", allow_degenerate)


def calibrate_weights(model: nn.Module) -> None:
    """Set the bounds of all quantizers of parameters."""
    for name, layer in weighted_layers(model):
        for part, quantizer, tensor in layer.rounded_parameters():
            observer = make_observer(quantizer, f"{name}.{part}")
            run_passes(observer, [tensor])
            quantizer.set_bounds(*observer.bounds())


def watches_of(model: nn.Module, at_once: bool) -> list[Watch]:
    """Return a watch for each quantizer of activations that is calibrated by itself, in module order."""
    followers: dict[int, list[Quantizer]] = {}
    for _, quantizer in named_quantizers(model):
        if quantizer.followed is not None:
            followers.setdefault(id(quantizer.followed), []).append(quantizer)
    return [Watch(name, quantizer, make_observer(quantizer, name), followers.get(id(quantizer), ()), at_once=at_once)
            for name, quantizer in activation_quantizers(model) if quantizer.followed is None]


def observe(watches: list[Watch], batches: Sequence[torch.Tensor], forward: Callable[[torch.Tensor], object],
            on_progress: Callable[[int, int], None] | None) -> None:
    """Show the observers what their quantizers see, in forward passes in which these round nothing.

    Args:
        watches: The quantizers; they are off afterwards.
        batches: See :func:`calibrate`.
        forward: Runs the model on one batch.
        on_progress: Called with (forwards done, forwards to do).
    """
    for watch in watches:
        watch.quantizer.state, watch.quantizer.watcher = State.OBSERVE, watch
    try:
        _in_passes(watches, batches, forward, on_progress)
    finally:
        for watch in watches:
            watch.quantizer.state, watch.quantizer.watcher = State.OFF, None


def _in_passes(watches: list[Watch], batches: Sequence[torch.Tensor], forward: Callable[[torch.Tensor], object],
               on_progress: Callable[[int, int], None] | None) -> None:
    done = 0
    if len(batches) == 1:
        forward(batches[0])
        done = 1
        watches = _seen_in_parts(watches)
    passes = max((watch.passes for watch in watches), default=0)
    total = done + passes * len(batches)
    if done and on_progress is not None:
        on_progress(done, total)
    for number in range(passes):
        active = [watch for watch in watches if number < watch.passes]
        for watch in watches:
            watch.number = number
            watch.quantizer.state = State.OBSERVE if watch in active else State.OFF
        for batch in batches:
            forward(batch)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        for watch in active:
            watch.finish(number)


def _seen_in_parts(watches: list[Watch]) -> list[Watch]:
    """Switch off all quantizers; return those that saw several tensors in one forward, to be observed in passes."""
    again = []
    for watch in watches:
        watch.quantizer.state = State.OFF
        if watch.calls > 1:
            watch.start_over()
            again.append(watch)
    return again


def check_bounds(model: nn.Module, source: str, allow_degenerate: bool = False) -> None:
    """Verify that every quantizer has finite bounds in the right order.

    Args:
        model: Prepared model.
        source: Where the bounds came from, for the message.
        allow_degenerate: Warn, rather than refuse, where bounds are equal or crossed.

    Raises:
        UserError: Names the first quantizer whose bounds are NaN, equal or crossed.
    """
    for name, quantizer in named_quantizers(model):
        lower, upper = quantizer.lower_bound, quantizer.upper_bound
        if not bool((torch.isfinite(lower) & torch.isfinite(upper)).all()):
            raise UserError(f"{source}: the bounds of '{name}' are not finite; it was not calibrated, or saw NaN")
        if bool((lower >= upper).any()):
            constant = bool((lower == upper).any())
            message = (f"{source}: '{name}' saw a constant tensor, whose bounds are equal" if constant
                       else f"{source}: the bounds of '{name}' are crossed (lower above upper)")
            if not allow_degenerate:
                raise UserError(f"{message}; leave the layer out of the plan by 'none'" if constant
                                else f"{message}; calibrate again, or learn with a smaller rate")
            logger.warning("%s", message)
