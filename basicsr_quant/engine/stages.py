"""The stages of a training, one after another, from the first or from the one that was interrupted."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from basicsr_quant.data.build import build_train_loader
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.engine.checkpoint import Checkpoints, Progress, progress_of
from basicsr_quant.engine.distributed import Process
from basicsr_quant.engine.ema import Ema
from basicsr_quant.engine.loop import Hooks, Loop
from basicsr_quant.engine.record import Recorder
from basicsr_quant.engine.validation import Validator
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import Stage
from basicsr_quant.options.optimization import SCHEDULERS
from basicsr_quant.options.types import DatasetOptions, Options, TrainOptions

logger = logging.getLogger("basicsr_quant")


@dataclass
class Training:
    """Everything that stays the same from stage to stage."""

    options: Options
    process: Process
    checkpoints: Checkpoints
    recorder: Recorder
    data: DatasetOptions
    dataset: PairedImageDataset
    validation_data: dict[str, PairedImageDataset]

    @property
    def settings(self) -> TrainOptions:
        """The ``train`` block."""
        assert self.options.train is not None
        return self.options.train

    def run(self, state: dict[str, Any] | None) -> None:
        """Run what is left of all stages and save the networks as ``latest``.

        Args:
            state: A verified training state to go on from, or None.

        Raises:
            UserError: The state does not fit the options, or what the loop says.
        """
        model = self.checkpoints.model
        model.prepare_training(self.dataset)
        ends = list(accumulate(model.stage_lengths))
        progress = progress_of(state) if state is not None else Progress()
        if progress.stage_start not in (0, *ends[:-1]):
            raise UserError(f"path:resume_state: its stage began after iteration {progress.stage_start}, but with "
                            f"these options stages end after {', '.join(map(str, ends))}; resume with the options of "
                            "the interrupted run")
        if progress.iteration in ends[:-1]:
            self.checkpoints.load_networks(progress.iteration)
            progress.stage_start = progress.iteration
        elif progress.stage_start:
            self.checkpoints.load_networks(progress.stage_start)
        ema = None
        for index, end in enumerate(ends):
            if end > progress.stage_start:
                ema = self._run_stage(model.stage(index), progress, end, ends[-1])
                progress.stage_start = end
        if self.process.is_main:
            self.checkpoints.save_networks("latest", ema, progress.iteration)

    def _run_stage(self, stage: Stage, progress: Progress, end: int, total: int) -> Ema | None:
        """Train a stage from ``progress`` to iteration ``end``; return the average of its network."""
        options, settings, process = self.options, self.settings, self.process
        model = self.checkpoints.model
        ema = Ema(model.trained[stage.label], settings.ema_decay, stage.label) if settings.ema_decay else None
        resumed = progress.iteration > progress.stage_start
        if resumed:
            self.checkpoints.load_networks(progress.iteration, ema)
        schedule = stage.schedule
        if schedule is None:
            schedule = (SCHEDULERS.build("Constant") if settings.scheduler is None
                        else settings.scheduler.build(SCHEDULERS))
        validator = Validator(self.validation_data, model, ema, process, self.checkpoints, self.recorder, progress)
        loop = Loop(stage, end, settings, schedule, process, progress, ema, self._hooks(stage, validator, total),
                    options.find_unused_parameters)
        if resumed:
            loop.resume()
        logger.info("stage '%s': iterations %d to %d on %s, %d process(es)", stage.name, progress.iteration + 1, end,
                    process.device, process.world_size)
        loop.run(build_train_loader(
            stage.dataset or self.dataset, self.data, seed=options.manual_seed, total_iter=end,
            start_iteration=progress.iteration, rank=process.rank, world_size=process.world_size,
            accumulation=settings.accumulation))
        return ema

    def _hooks(self, stage: Stage, validator: Validator, total: int) -> Hooks:
        """Return what happens beside training: log lines, validation, checkpoints."""
        options, progress, ema = self.options, validator.progress, validator.ema
        start, began = progress.iteration, time.monotonic()

        def log(iteration: int, losses: dict[str, float]) -> None:
            rate = stage.optimizers[0].param_groups[0]["lr"]
            terms = "".join(f", {name} {value:.4e}" for name, value in losses.items())
            seconds = (time.monotonic() - began) / (iteration - start)
            left = int(seconds * (total - iteration))
            logger.info("[%s] iteration %d/%d, lr %.3e%s, %.2f s/it, ETA %d:%02d:%02d", options.name, iteration,
                        total, rate, terms, seconds, left // 3600, left // 60 % 60, left % 60)
            scalars = {f"losses/{name}": value for name, value in losses.items()}
            self.recorder.scalars(scalars | {"lr": rate}, iteration)

        def save(iteration: int) -> None:
            if self.process.is_main:
                self.checkpoints.save(progress, ema)
            self.process.barrier()

        val_freq = options.val.val_freq if options.val is not None else total
        return Hooks(log, validator.validate, save, options.logger.print_freq, val_freq,
                     options.logger.save_checkpoint_freq)
