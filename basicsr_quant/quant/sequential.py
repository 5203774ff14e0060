"""Error-aware calibration: quantizers one after another, each on tensors in which all earlier ones round already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import (
    Watch,
    calibrate_weights,
    check_bounds,
    observe,
    set_state,
    watches_of,
)
from basicsr_quant.quant.layers.weighted import frozen_weights
from basicsr_quant.quant.quantizer import State
from basicsr_quant.quant.reduction import same_everywhere

Forward = Callable[[torch.Tensor], object]
Progress = Callable[[int, int], None]


@torch.no_grad()
def calibrate_in_order(model: nn.Module, batches: Sequence[torch.Tensor], *, groups: int = 0,
                       forward: Forward | None = None, on_progress: Progress | None = None,
                       allow_degenerate: bool = False) -> None:
    """Set the bounds of every quantizer in order of execution and switch them all on.

    Weights come first and are rounded from then on. Quantizers of activations follow in groups; within a group nothing
    is rounded yet, as in :func:`basicsr_quant.quant.calibrate.calibrate`. One by one over a single batch, everything
    happens in one forward pass: each quantizer sees its tensor, gets its bounds and rounds. Modules that run several
    times are observed once more afterwards. Otherwise every group costs its own passes over all batches, each of which
    ends after the group's last module.

    Args:
        model: Prepared model, in the mode (train or eval) in which it shall be observed.
        batches: Inputs on the model's device, seen in order. Each pass must see the same tensors.
        groups: Number of groups, of nearly equal numbers of quantizers; 0 for one by one.
        forward: Runs the model on one batch; default ``model(batch)``.
        on_progress: Called with (forwards done, forwards to do).
        allow_degenerate: Warn, rather than refuse, where bounds are equal or crossed.

    Raises:
        UserError: As :func:`basicsr_quant.quant.calibrate.calibrate`.
    """
    if not same_everywhere(len(batches), next(model.parameters()).device):
        raise UserError("calibration: processes have different numbers of batches; give each the same")
    forward = forward or model
    set_state(model, State.QUANTIZE)
    calibrate_weights(model)
    watches = watches_of(model, at_once=len(batches) == 1)
    with frozen_weights(model):
        if len(batches) == 1 and not groups:
            _one_by_one(watches, batches[0], forward, on_progress)
        else:
            _in_groups(watches, batches, groups, forward, on_progress)
    set_state(model, State.QUANTIZE)
    check_bounds(model, "calibration", allow_degenerate)


def _one_by_one(watches: list[Watch], batch: torch.Tensor, forward: Forward, on_progress: Progress | None) -> None:
    for watch in watches:
        watch.quantizer.state, watch.quantizer.watcher = State.FOLLOW, _Setter(watch)
    try:
        forward(batch)
    finally:
        for watch in watches:
            watch.quantizer.watcher = None
    again = [watch for watch in watches if watch.calls > 1]
    for watch in watches:
        watch.take_bounds()
        _switch_on(watch)
    if again:
        for watch in again:
            watch.start_over()
        _observe_group(again, [batch], forward, _part(on_progress, 1, 0))
    elif on_progress is not None:
        on_progress(1, 1)


class _Setter:
    """Sets the bounds of a quantizer from the first tensor that it sees, before that is rounded."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, x: torch.Tensor) -> None:
        self._watch(x)
        if self._watch.calls == 1:
            _switch_on(self._watch, State.FOLLOW)


def _switch_on(watch: Watch, state: State = State.QUANTIZE) -> None:
    """Let a quantizer round, unless its bounds are such that it would spoil what comes after it."""
    usable = bool((watch.quantizer.lower_bound < watch.quantizer.upper_bound).all())
    watch.quantizer.state = state if usable else State.OFF
    for follower in watch.followers:
        follower.state = State.QUANTIZE if usable else State.OFF


class _Seen(Exception):
    """The last module of the group has run."""


def _in_groups(watches: list[Watch], batches: Sequence[torch.Tensor], groups: int, forward: Forward,
               on_progress: Progress | None) -> None:
    for watch in watches:
        for quantizer in (watch.quantizer, *watch.followers):
            quantizer.state = State.OFF
    calls = _calls(watches, batches, forward)
    first, times = {name: calls.index(name) for name in calls}, Counter(calls)
    order = sorted(watches, key=lambda watch: first.get(watch.name, len(calls)))
    count = min(groups or len(order), len(order))
    cut = [order[len(order) * number // count:len(order) * (number + 1) // count] for number in range(count)]
    costs = [len(batches) if len(batches) == 1 else len(batches) * max(watch.passes for watch in group)
             for group in cut]
    for number, group in enumerate(cut):
        expected = sum(times[watch.name] for watch in group)
        before, after = sum(costs[:number]), sum(costs[number + 1:])
        _observe_group(group, batches, _until_seen(group, expected, forward), _part(on_progress, before, after))


def _calls(watches: list[Watch], batches: Sequence[torch.Tensor], forward: Forward) -> list[str]:
    """Return the names of the quantizers in the order in which they are called in a forward pass."""
    calls: list[str] = []

    def recorder(name: str) -> Callable[[torch.Tensor], None]:
        return lambda x: calls.append(name)

    for watch in watches:
        watch.quantizer.state, watch.quantizer.watcher = State.OBSERVE, recorder(watch.name)
    try:
        for batch in batches[:1]:
            forward(batch)
    finally:
        for watch in watches:
            watch.quantizer.state, watch.quantizer.watcher = State.OFF, None
    return calls


def _until_seen(group: list[Watch], expected: int, forward: Forward) -> Forward:
    """Return a forward pass that ends as soon as the quantizers of a group were called as often as expected."""
    def limited(batch: torch.Tensor) -> None:
        first = sum(watch.calls for watch in group)

        def counted(watch: Watch) -> Callable[[torch.Tensor], None]:
            def see(x: torch.Tensor) -> None:
                watch(x)
                if sum(other.calls for other in group) - first == expected:
                    raise _Seen

            return see

        for watch in group:
            watch.quantizer.watcher = counted(watch)
        try:
            forward(batch)
        except _Seen:
            return

    return limited


def _observe_group(group: list[Watch], batches: Sequence[torch.Tensor], forward: Forward,
                   on_progress: Progress | None) -> None:
    observe(group, batches, forward, on_progress)
    for watch in group:
        watch.take_bounds()
        _switch_on(watch)


def _part(on_progress: Progress | None, before: int, after: int) -> Progress | None:
    """Return what reports a part of the work as the whole, with so many forwards before and after it."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(before + done, before + total + after)
