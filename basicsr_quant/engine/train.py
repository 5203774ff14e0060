"""``train.py``: from an option file to trained weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basicsr_quant.data.build import build_dataset, build_train_loader, missing_folders
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.engine import experiment
from basicsr_quant.engine.checkpoint import Best, Checkpoints, Progress
from basicsr_quant.engine.distributed import Process, processes
from basicsr_quant.engine.ema import Ema
from basicsr_quant.engine.loop import Clock, Hooks, Loop
from basicsr_quant.engine.record import Recorder
from basicsr_quant.engine.setup import make_deterministic, seed_everything
from basicsr_quant.engine.validation import evaluate
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import Batch, RestorationModel
from basicsr_quant.options.load import datasets_of_phase, effective_yaml
from basicsr_quant.options.optimization import SCHEDULERS
from basicsr_quant.options.types import DatasetOptions, Options
from basicsr_quant.registry import MODELS

logger = logging.getLogger("basicsr_quant")


def train(options: Options, launcher: str = "none", auto_resume: bool = False) -> Path:
    """Train, or calibrate and train, what the options describe; return the experiment's folder.

    Args:
        options: Typed options with a ``train`` block.
        launcher: ``none``, ``pytorch`` or ``slurm``.
        auto_resume: Go on from the newest valid state of ``experiments/<name>``.

    Raises:
        UserError: Anything a user can mend.
        Interrupted: A signal came; the state was saved.
    """
    if options.train is None:
        raise UserError("train: the option file has no 'train' block; is it a test file?")
    dist = options.dist_params
    with processes(launcher, options.num_gpu, options.gpu, dist.backend, dist.port) as process:
        run = _Run(options, process, auto_resume)
        try:
            run.train()
        finally:
            run.recorder.close()
        return run.folder


class _Run:
    """One training run: its folder, model, data and hooks."""

    def __init__(self, options: Options, process: Process, auto_resume: bool) -> None:
        self.options, self.process = options, process
        self.folder = experiment.experiment_folder(options)
        self.text = effective_yaml(options)
        resuming = auto_resume and any(self.folder.glob("training_states/*.state")) or bool(options.path.resume_state)
        if process.is_main and not resuming:
            experiment.archive(self.folder)
            experiment.archive(Path(options.path.tb_root) / options.name)
        process.barrier()
        experiment.start_logging(self.folder, f"train_{options.name}", process.is_main)
        make_deterministic(options.deterministic)
        seed_everything(options.manual_seed)
        self.train_data = self._training_data()
        self.validation_data = [(key, data, build_dataset(data, options.scale, "val", options.manual_seed, key))
                                for key, data in datasets_of_phase(options, "val") if present(key, data)]
        self.model: RestorationModel = MODELS.build(options.model_type, options, process.device)
        self.model.load_pretrained()
        self.checkpoints = Checkpoints(self.folder, self.model, self.text)
        self.state = self._find_state(auto_resume)
        if process.is_main:
            experiment.save_options(self.folder, f"train_{options.name}", self.text)
        self.recorder = Recorder(options, process.is_main)

    def _training_data(self) -> tuple[DatasetOptions, PairedImageDataset]:
        found = datasets_of_phase(self.options, "train")
        if len(found) != 1:
            raise UserError(f"datasets: exactly one training set is needed, found {len(found)}")
        key, data = found[0]
        read_gt = MODELS.get(self.options.model_type).needs_ground_truth
        return data, build_dataset(data, self.options.scale, "train", self.options.manual_seed, key, read_gt)

    def _find_state(self, auto_resume: bool) -> dict[str, Any] | None:
        if auto_resume:
            found = self.checkpoints.newest_valid()
            if found is not None:
                logger.info("resuming from %s", found[0])
                return found[1]
            logger.info("auto_resume: no valid state in '%s'; starting from the beginning", self.folder)
        elif self.options.path.resume_state:
            return self.checkpoints.read(Path(self.options.path.resume_state))
        return None

    def train(self) -> None:
        options, model = self.options, self.model
        assert options.train is not None
        model.prepare_training(self.train_data[1])
        stage = model.stage()
        ema = Ema(model.trained[stage.label], options.train.ema_decay) if options.train.ema_decay else None
        progress = Progress()
        if self.state is not None:
            experiment.report_changes(self.state["options"], self.text)
            progress = self.checkpoints.restore(self.state, ema)
        schedule = options.train.scheduler.build(SCHEDULERS) if options.train.scheduler else SCHEDULERS.build("Constant")
        clock = Clock(progress.iteration, options.train.total_iter)

        def log(iteration: int, losses: dict[str, float]) -> None:
            rate = stage.optimizers[0].param_groups[0]["lr"]
            terms = ", ".join(f"{name} {value:.4e}" for name, value in losses.items())
            logger.info("[%s] iteration %d/%d, lr %.3e, %s, %s", options.name, iteration, options.train.total_iter, rate,
                        terms, clock.describe(iteration))
            self.recorder.scalars({f"losses/{name}": value for name, value in losses.items()} | {"lr": rate}, iteration)

        def validate(iteration: int) -> None:
            self._validate(iteration, progress, ema)

        def save(iteration: int) -> None:
            if self.process.is_main:
                self.checkpoints.save(progress, ema)
            self.process.barrier()

        validating = options.val is not None and self.validation_data
        hooks = Hooks(log, validate, save, options.logger.print_freq,
                      options.val.val_freq if validating else options.train.total_iter + 1,
                      options.logger.save_checkpoint_freq)
        loop = Loop(stage, options.train, schedule, self.process, progress, ema, hooks)
        if self.state is not None:
            loop.resume()
        logger.info("stage '%s': iterations %d to %d on %s, %d process(es)", stage.name, progress.iteration + 1,
                    options.train.total_iter, self.process.device, self.process.world_size)
        loop.run(self._batches(progress.iteration))
        if self.process.is_main:
            self.checkpoints.save_networks("latest", ema, progress.iteration)
        if validating and progress.iteration % hooks.val_freq:
            validate(progress.iteration)

    def _batches(self, done: int) -> Iterator[Batch]:
        data, dataset = self.train_data
        train = self.options.train
        assert train is not None
        return iter(build_train_loader(
            dataset, data, seed=self.options.manual_seed, total_iter=train.total_iter, start_iteration=done,
            rank=self.process.rank, world_size=self.process.world_size, accumulation=train.accumulation))

    def _validate(self, iteration: int, progress: Progress, ema: Ema | None) -> None:
        options = self.options
        assert options.val is not None
        network = ema.network if ema is not None else self.model.network
        network.eval()
        for position, (key, data, dataset) in enumerate(self.validation_data):
            folder = self.folder / "visualization" / data.name if options.val.save_img else None
            results = evaluate(self.model, dataset, self.process, data.name, options.val.metrics, network, folder,
                               f"{iteration}")
            mean = results.mean
            logger.info("validation %s (%s), iteration %d: %s", data.name, key, iteration,
                        ", ".join(f"{name} {value:.4f}" for name, value in mean.items()))
            self.recorder.scalars({f"metrics/{data.name}/{name}": value for name, value in mean.items()}, iteration)
            if position == 0 and mean:
                self._keep_best(mean, iteration, progress, ema)
        self.model.network.train(self.model.trains_in_train_mode)

    def _keep_best(self, mean: dict[str, float], iteration: int, progress: Progress, ema: Ema | None) -> None:
        assert self.options.val is not None
        name = next(iter(mean))
        sign = 1 if self.options.val.metrics[name].better == "higher" else -1
        if progress.best.iteration and sign * mean[name] <= sign * progress.best.value:
            return
        progress.best = Best(name, mean[name], iteration)
        if self.process.is_main:
            self.checkpoints.save_networks("best", ema, iteration)


def present(key: str, data: DatasetOptions) -> bool:
    """Whether a data set takes part: an optional one whose folder is absent does not."""
    absent = missing_folders(data) if data.optional else []
    if absent:
        logger.info("datasets:%s is optional and '%s' does not exist; skipped", key, absent[0])
    return not absent
