"""The training loop."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from basicsr_quant.engine.averages import Averages
from basicsr_quant.engine.checkpoint import Progress
from basicsr_quant.engine.distributed import Process
from basicsr_quant.engine.ema import Ema
from basicsr_quant.engine.interruption import Interrupted, signals
from basicsr_quant.engine.nonfinite import GRADIENT, describe
from basicsr_quant.engine.schedules import learning_rate
from basicsr_quant.errors import UserError, WriteError
from basicsr_quant.models.base import Batch, LearningRateSchedule, Stage
from basicsr_quant.options.types import TrainOptions

logger = logging.getLogger("basicsr_quant")

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Hooks:
    """What happens beside training; each gets the iteration that has just ended, on every process.

    Attributes:
        log: Called with the averaged losses every ``print_freq`` iterations.
        validate: Called every ``val_freq`` iterations and at the end, before saving.
        save: Called every ``save_freq`` iterations, at the end, and before the loop is left early.
        print_freq: Iterations between two log lines.
        val_freq: Iterations between two validations.
        save_freq: Iterations between two checkpoints.
    """

    log: Callable[[int, dict[str, float]], None]
    validate: Callable[[int], None]
    save: Callable[[int], None]
    print_freq: int
    val_freq: int
    save_freq: int


@dataclass
class Loop:
    """Everything that the loop works on.

    Attributes:
        stage: What is trained; its iterations are those behind ``progress.stage_start``.
        last: The stage's last iteration, counted over all stages.
    """

    stage: Stage
    last: int
    options: TrainOptions
    schedule: LearningRateSchedule
    process: Process
    progress: Progress
    ema: Ema | None
    hooks: Hooks
    find_unused_parameters: bool = False
    scaler: torch.amp.GradScaler = field(init=False)
    losses: Averages = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.process.device.type, enabled=self.options.precision == "fp16")
        self.losses = Averages()
        self._saved = self.progress.iteration

    def run(self, batches: Iterable[Batch]) -> None:
        """Train from ``progress.iteration`` to ``last``.

        Args:
            batches: Micro-batches on the CPU, ``accumulation`` for each iteration, beginning with the next iteration's.

        Raises:
            Interrupted: A signal came; the state was saved.
            UserError: A loss or gradient became NaN or infinite (``train:on_nan: stop``), or a weight is; or an image
                could not be read or validation failed, then the state was saved.
        """
        options, hooks = self.options, self.hooks
        step = self._distributed(self.stage.step)
        stream = iter(batches)
        with signals() as received:
            for iteration in range(self.progress.iteration + 1, self.last + 1):
                self._begin(iteration)
                terms, seen = [], []
                for micro in range(options.accumulation):
                    seen.append(self._fetch(stream))
                    with self._synchronized(step, micro == options.accumulation - 1):
                        with self._autocast():
                            terms.append(step(seen[-1]))
                        total = sum(terms[-1].values()) / options.accumulation
                        self.scaler.scale(total).backward()
                finite = self._finite(terms, seen, iteration)
                if finite:
                    self._step()
                    self.losses.add(terms)
                if self.stage.after_iteration is not None:
                    self.stage.after_iteration()
                if finite and self.ema is not None:
                    self.ema.update()
                for optimizer in self.stage.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                self.progress.iteration = iteration
                if iteration % hooks.print_freq == 0:
                    hooks.log(iteration, self.losses.take(self.process))
                if iteration % hooks.val_freq == 0 or iteration == self.last:
                    self._validate(iteration)
                stop = self.process.any(bool(received))
                if stop or iteration % hooks.save_freq == 0 or iteration == self.last:
                    self._save()
                if stop:
                    raise Interrupted(received)
        if self.progress.skipped:
            logger.warning("steps left out so far, as a loss or gradient was not finite: %d", self.progress.skipped)

    def _fetch(self, stream: Iterator[Batch]) -> Batch:
        """Return the next batch; if any process has none, all save what is finished and stop."""
        batch: Batch = {}
        failure: UserError | None = None
        try:
            batch = next(stream)
        except UserError as error:
            failure = error
        if self.process.any(failure is not None):
            self._save()
            raise failure or UserError("another process could not read its images; its message says why")
        return batch

    def _finite(self, terms: list[dict[str, torch.Tensor]], batches: list[Batch], iteration: int) -> bool:
        """Check losses and, unless the scaler does, gradients, with one host synchronization."""
        named = [(f"loss '{name}'", value.detach()) for micro in terms for name, value in micro.items()]
        if not self.scaler.is_enabled() or self.scaler.get_scale() <= 1:  # above 1 an overflow is the scale's
            trained = [parameter for optimizer in self.stage.optimizers for parameter in _parameters(optimizer)]
            gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
            named.append((GRADIENT, nn.utils.get_total_norm(gradients)))
        flags = torch.stack([value.double() for _, value in named]).isfinite().tolist()
        bad = [name for (name, _), fine in zip(named, flags, strict=True) if not fine]
        if self.process.any(bool(bad)):
            self._leave_out(bad, batches, iteration)
            return False
        return True

    def _leave_out(self, bad: list[str], batches: list[Batch], iteration: int) -> None:
        """Say what is not finite, on any process, and stop, unless the options let such a step be left out."""
        stops = self.options.on_nan == "stop"
        look = stops and not self.options.compile
        text, broken = describe(bad, self.stage.step, batches if look else (), self._autocast, self.process)
        place = f"iteration {iteration}: {text}"
        if broken:
            raise UserError(f"{place}; go on from an earlier checkpoint with a lower learning rate")
        if stops:
            raise UserError(f"{place}; lower the learning rate, or set train:on_nan=skip to leave such steps out")
        self.progress.skipped += 1
        logger.warning("%s; the step is left out (%d so far)", place, self.progress.skipped)

    def _step(self) -> None:
        for optimizer in self.stage.optimizers:
            if self.options.gradient_clip:
                self.scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(_parameters(optimizer), self.options.gradient_clip)
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.stage.after_step is not None:
            self.stage.after_step()

    def _begin(self, iteration: int) -> None:
        """Tell the stage how far it is, and set the learning rates."""
        start = self.progress.stage_start
        if self.stage.before_step is not None:
            self.stage.before_step((iteration - start - 1) / (self.last - start))
        for optimizer, rates in zip(self.stage.optimizers, self.stage.base_rates, strict=True):
            for group, base in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = learning_rate(self.schedule, base, iteration - start, self.options.warmup_iter)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = AUTOCAST.get(self.options.precision)
        return torch.autocast(self.process.device.type, dtype=dtype, enabled=dtype is not None)

    def _distributed(self, step: nn.Module) -> nn.Module:
        if self.process.world_size == 1:
            return step
        devices = [self.process.device] if self.process.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(step, device_ids=devices, broadcast_buffers=False,
                                                   find_unused_parameters=self.find_unused_parameters)

    @staticmethod
    def _synchronized(step: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are averaged over the processes in the last micro-batch only."""
        if isinstance(step, nn.parallel.DistributedDataParallel) and not last:
            return step.no_sync()
        return contextlib.nullcontext()

    def _validate(self, iteration: int) -> None:
        """Validate; save first if that fails, unless nothing can be written: then the iteration is run again."""
        try:
            self.hooks.validate(iteration)
        except WriteError:
            raise
        except UserError:
            self._save()
            raise

    def _save(self) -> None:
        """Save the last finished iteration, unless that was done."""
        if self._saved == self.progress.iteration:
            return
        self.progress.optimizers = [optimizer.state_dict() for optimizer in self.stage.optimizers]
        self.progress.scaler = self.scaler.state_dict()
        self.progress.losses = self.losses.state()
        self.hooks.save(self.progress.iteration)
        self._saved = self.progress.iteration

    def resume(self) -> None:
        """Put the states of ``progress`` in place; hyperparameters are those of the present options.

        Raises:
            UserError: The optimizer is another one.
        """
        optimizers, states = self.stage.optimizers, self.progress.optimizers
        if len(states) != len(optimizers):
            raise UserError(f"the saved state is of {len(states)} optimizers, this training has {len(optimizers)}; "
                            "resume with the options of the interrupted run")
        for optimizer, state in zip(optimizers, states, strict=True):
            settings = [{key: value for key, value in group.items() if key != "params"}
                        for group in optimizer.param_groups]
            try:
                if any(own.keys() != saved.keys() - {"params"}
                       for own, saved in zip(settings, state["param_groups"], strict=True)):
                    raise ValueError("it has other settings")
                optimizer.load_state_dict(state)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"the saved optimizer state does not fit ({error}); resume with the optimizer and the "
                                "trained parameters of the interrupted run") from error
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                group.update(own)
        if self.progress.scaler:  # empty if the interrupted run had another precision
            self.scaler.load_state_dict(self.progress.scaler)
        self.losses.restore(self.progress.losses, self.process.device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
