"""The training loop."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from basicsr_quant.engine.checkpoint import Progress
from basicsr_quant.engine.distributed import Process
from basicsr_quant.engine.ema import Ema
from basicsr_quant.engine.schedules import Schedule, learning_rate
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import Batch, Stage
from basicsr_quant.options.types import TrainOptions

logger = logging.getLogger("basicsr_quant")

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the iteration was finished and saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@dataclass
class Hooks:
    """What happens beside training; each gets the iteration that has just ended.

    Attributes:
        log: Called with the averaged losses every ``print_freq`` iterations.
        validate: Called every ``val_freq`` iterations.
        save: Called every ``save_checkpoint_freq`` iterations, at an interruption and at the end.
    """

    log: Callable[[int, dict[str, float]], None]
    validate: Callable[[int], None]
    save: Callable[[int], None]
    print_freq: int
    val_freq: int
    save_freq: int


@dataclass
class Loop:
    """Everything that the loop works on."""

    stage: Stage
    options: TrainOptions
    schedule: Schedule
    process: Process
    progress: Progress
    ema: Ema | None
    hooks: Hooks
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.process.device.type, enabled=self.options.precision == "fp16")

    def run(self, batches: Iterable[Batch]) -> None:
        """Train from ``progress.iteration`` to ``total_iter``.

        Args:
            batches: Micro-batches on the CPU, ``accumulation`` for each iteration, beginning with the next iteration's.

        Raises:
            Interrupted: A signal came; the state was saved.
            UserError: A loss became NaN or infinite (``train:on_nan: stop``).
        """
        options, stage, hooks = self.options, self.stage, self.hooks
        step = self._distributed(stage.step)
        stream = iter(batches)
        losses = Averages()
        with signals() as received:
            for iteration in range(self.progress.iteration + 1, options.total_iter + 1):
                self._set_rates(iteration)
                finite = True
                for micro in range(options.accumulation):
                    batch = next(stream)
                    last = micro == options.accumulation - 1
                    with self._synchronize(step, last), self._autocast():
                        terms = step(batch)
                        total = sum(terms.values()) / options.accumulation
                    finite = finite and self._check(terms, iteration)
                    if finite:
                        with self._synchronize(step, last):
                            self.scaler.scale(total).backward()
                        losses.add(terms)
                if finite:
                    self._step()
                self._clear()
                self.progress.iteration = iteration
                if iteration % hooks.print_freq == 0:
                    hooks.log(iteration, losses.take())
                if iteration % hooks.val_freq == 0:
                    hooks.validate(iteration)
                stop = self.process.any(bool(received))
                if stop or iteration % hooks.save_freq == 0 or iteration == options.total_iter:
                    self._snapshot()
                    hooks.save(iteration)
                if stop:
                    raise Interrupted(received[0] if received else signal.SIGTERM)

    def _step(self) -> None:
        stage, options = self.stage, self.options
        for optimizer in stage.optimizers:
            if options.gradient_clip:
                self.scaler.unscale_(optimizer)
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(parameters, options.gradient_clip)
            self.scaler.step(optimizer)
        self.scaler.update()
        if stage.after_step is not None:
            stage.after_step()
        if self.ema is not None:
            self.ema.update(self._trained())

    def _trained(self) -> nn.Module:
        network = self.stage.step.network
        assert isinstance(network, nn.Module)
        return network

    def _clear(self) -> None:
        for optimizer in self.stage.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _set_rates(self, iteration: int) -> None:
        for optimizer, rates in zip(self.stage.optimizers, self.stage.base_rates, strict=True):
            for group, base in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = learning_rate(self.schedule, base, iteration, self.options.warmup_iter)

    def _check(self, terms: dict[str, torch.Tensor], iteration: int) -> bool:
        bad = [name for name, value in terms.items() if not torch.isfinite(value).all()]
        if not self.process.any(bool(bad)):
            return True
        place = f"iteration {iteration}: loss '{bad[0]}' is NaN or infinite" if bad else f"iteration {iteration}: NaN on another rank"
        if self.options.on_nan == "stop":
            raise UserError(f"{place}; lower the learning rate, or set train:on_nan=skip to leave such steps out")
        logger.warning("%s; the step is left out", place)
        return False

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = AUTOCAST.get(self.options.precision)
        return torch.autocast(self.process.device.type, dtype=dtype, enabled=dtype is not None)

    def _distributed(self, step: nn.Module) -> nn.Module:
        if self.process.world_size == 1:
            return step
        devices = [self.process.device] if self.process.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(step, device_ids=devices, broadcast_buffers=False)

    def _synchronize(self, step: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        if isinstance(step, nn.parallel.DistributedDataParallel) and not last:
            return step.no_sync()
        return contextlib.nullcontext()

    def _snapshot(self) -> None:
        self.progress.optimizers = [optimizer.state_dict() for optimizer in self.stage.optimizers]
        self.progress.scaler = self.scaler.state_dict()

    def resume(self) -> None:
        """Put the optimizer states of ``progress`` in place."""
        for optimizer, state in zip(self.stage.optimizers, self.progress.optimizers, strict=True):
            optimizer.load_state_dict(state)
        self.scaler.load_state_dict(self.progress.scaler)


class Averages:
    """Running means of loss terms; the sums stay on the device until they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """Add one micro-batch."""
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._count += 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call and start over."""
        means = {name: float(value) / max(self._count, 1) for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


class Clock:
    """Seconds per iteration over the run and what is left."""

    def __init__(self, start: int, total: int) -> None:
        self._start, self._total, self._began = start, total, time.monotonic()

    def describe(self, iteration: int) -> str:
        """Return ``"0.52 s/it, ETA 1:02:03"``."""
        seconds = (time.monotonic() - self._began) / max(iteration - self._start, 1)
        left = int(seconds * (self._total - iteration))
        return f"{seconds:.2f} s/it, ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying; a second one is obeyed at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        logger.warning("%s: finishing this iteration, then saving", signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
