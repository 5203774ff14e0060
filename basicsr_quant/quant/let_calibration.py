"""Calibration of models with equivalent transformations: scales and bounds, in two orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import calibrate, check_bounds, make_observer, named_quantizers, set_state
from basicsr_quant.quant.let import Scale
from basicsr_quant.quant.let_scales import estimate_scales
from basicsr_quant.quant.observers.base import Observer
from basicsr_quant.quant.quantizer import Quantizer, State, extremes


def calibrate_scales_first(model: nn.Module, batches: Sequence[torch.Tensor], *, momentum: float | None = None,
                           forward: Callable[[torch.Tensor], object] | None = None,
                           on_progress: Callable[[int, int], None] | None = None,
                           allow_degenerate: bool = False) -> None:
    """Estimate all scales over all batches without rounding, then set all bounds with the final scales.

    Without transformations in the model this is :func:`calibrate`.

    Args:
        model: Prepared model, in eval mode.
        batches: As in :func:`calibrate`; ``forward`` may bring them to the model's device.
        momentum: See :func:`estimate_scales`.
        forward: Runs the model on one batch; default ``model(batch)``.
        on_progress: Called with (forwards done, forwards to do).
        allow_degenerate: Warn, rather than refuse, where bounds are equal or crossed.

    Raises:
        UserError: As :func:`calibrate`, or a scale saw no data.
    """
    forward = forward or model
    first = 0
    if has_scales(model):
        first = len(batches)
        set_state(model, State.OFF)
        with torch.no_grad(), estimate_scales(model, momentum):
            for number, batch in enumerate(batches):
                forward(batch)
                if on_progress is not None:
                    on_progress(number + 1, 2 * first)

    def report(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(first + done, first + total)

    calibrate(model, batches, forward=forward, on_progress=report, allow_degenerate=allow_degenerate)


@torch.no_grad()
def calibrate_in_one_pass(model: nn.Module, batches: Sequence[torch.Tensor], *, momentum: float = 0.9,
                          forward: Callable[[torch.Tensor], object] | None = None,
                          on_progress: Callable[[int, int], None] | None = None,
                          allow_degenerate: bool = False) -> None:
    """Set scales and bounds in one pass in which everything is rounded, as the released PassionSR does.

    Each quantizer follows its recipe's observer batch by batch; ``{type: ema_minmax, momentum: 1}`` keeps the bounds of
    the first batch. So layers see inputs that were rounded before them, and bounds belong to the scales of their batch.

    Source: PassionSR specification 4.3, 4.4.

    Args:
        model: Prepared model, in eval mode.
        batches: In order.
        momentum: Share of the old scale that each batch after the first keeps.
        forward: Runs the model on one batch; default ``model(batch)``.
        on_progress: Called with (forwards done, forwards to do).
        allow_degenerate: Warn, rather than refuse, where bounds are equal or crossed.

    Raises:
        UserError: An observer needs several passes, or what :func:`calibrate` raises.
    """
    followers = {name: _Follower(name, quantizer) for name, quantizer in named_quantizers(model)}
    forward = forward or model
    with estimate_scales(model, momentum) if has_scales(model) else nullcontext(), _following(model, followers):
        for number, batch in enumerate(batches):
            forward(batch)
            if on_progress is not None:
                on_progress(number + 1, len(batches))
    for name, follower in followers.items():
        if not follower.observer.seen:
            raise UserError(f"calibration: '{name}' saw no data; is its module part of the forward pass?")
    check_bounds(model, "calibration", allow_degenerate)


@contextmanager
def renewed_bounds(model: nn.Module) -> Iterator[None]:
    """Context in which each forward sets all bounds to the extremes of what it sees, before it rounds.

    No gradient flows through bounds that are set so. The bounds of the last forward stay; extremes that are not finite
    set none.

    Source: PassionSR specification 5, stage 1 of the UNet alone.
    """
    def setter(quantizer: Quantizer) -> Callable[[torch.Tensor], None]:
        def renew(x: torch.Tensor) -> None:
            own = quantizer.lower_bound, quantizer.upper_bound
            seen = extremes(x, quantizer.channel_axis, own[0].shape)
            finite = torch.isfinite(seen[0]) & torch.isfinite(seen[1])
            quantizer.set_bounds(*(torch.where(finite, new, old) for new, old in zip(seen, own, strict=True)))

        return renew

    with _following(model, {name: setter(quantizer) for name, quantizer in named_quantizers(model)}):
        yield


def has_scales(model: nn.Module) -> bool:
    """Whether a model has scales of equivalent transformations or of smoothed attention."""
    return any(isinstance(module, Scale) for module in model.modules())


class _Follower:
    """Sets a quantizer's bounds to what its observer says after each tensor."""

    def __init__(self, name: str, quantizer: Quantizer) -> None:
        self.quantizer = quantizer
        self.observer: Observer = make_observer(quantizer, name)
        if self.observer.passes > 1:
            raise UserError(f"'{name}': observer {quantizer.recipe.observer.describe()} needs several passes; "
                            "calibration in one pass serves minmax and ema_minmax")

    def __call__(self, x: torch.Tensor) -> None:
        self.observer.update(x, 0)
        self.observer.finish(0)
        self.quantizer.set_bounds(*self.observer.bounds())


@contextmanager
def _following(model: nn.Module, watchers: Mapping[str, Callable[[torch.Tensor], None]]) -> Iterator[None]:
    """Context in which quantizers show what they see to their watchers and then round it."""
    quantizers = dict(named_quantizers(model))
    for name, watcher in watchers.items():
        quantizers[name].state, quantizers[name].watcher = State.FOLLOW, watcher
    try:
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.state, quantizer.watcher = State.QUANTIZE, None
