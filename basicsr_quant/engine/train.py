"""``train.py``: from an option file to trained weights."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from basicsr_quant.data.build import build_dataset, build_train_loader
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.engine import experiment
from basicsr_quant.engine.checkpoint import Checkpoints, Progress, newest_valid, read_state
from basicsr_quant.engine.datasets import open_datasets, training_set
from basicsr_quant.engine.distributed import Process, processes
from basicsr_quant.engine.ema import Ema
from basicsr_quant.engine.loop import Hooks, Loop
from basicsr_quant.engine.record import Recorder
from basicsr_quant.engine.setup import make_deterministic, seed_everything
from basicsr_quant.engine.validation import Validator
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import remove_leftovers
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import effective_yaml
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
        folder = experiment.experiment_folder(options)
        state = _open_folder(folder, options, process, auto_resume)
        make_deterministic(options.deterministic)
        seed_everything(options.manual_seed)
        data, dataset = _training_data(options)
        validation_data = open_datasets(options, "val") if options.val is not None else {}
        model: RestorationModel = MODELS.build(options.model_type, options, process.device)
        model.load_pretrained(training=True)
        checkpoints = Checkpoints(folder, model, effective_yaml(options))
        if process.is_main:
            experiment.save_options(folder, f"train_{options.name}", checkpoints.options_text)
        recorder = Recorder(options, process.is_main)
        try:
            _train(options, process, checkpoints, recorder, state, data, dataset, validation_data)
        finally:
            recorder.close()
    return folder


def _open_folder(folder: Path, options: Options, process: Process, auto_resume: bool) -> dict[str, Any] | None:
    """Return the state to go on from, if any; otherwise put an earlier run of the same name aside. Start the log."""
    path, state, reasons = None, None, list[str]()
    if auto_resume:
        path, state, reasons = newest_valid(folder)
    if state is None and options.path.resume_state is not None:
        path = Path(options.path.resume_state)
        state = read_state(path)
        if path.resolve().parent.parent != folder.resolve():
            raise UserError(f"path:resume_state: '{path}' belongs to another run than '{folder}'; set name to that "
                            "run's name, or start from its weights by path:pretrain_network_*")
    process.barrier()
    if process.is_main and state is None:
        experiment.archive(folder)
        experiment.archive(Path(options.path.tb_root) / options.name)
    process.barrier()
    experiment.start_logging(folder, f"train_{options.name}", process.is_main)
    for reason in reasons if process.is_main else ():
        logger.warning("auto_resume passes over a state: %s", reason)
    if state is not None:
        logger.info("resuming from '%s'", path)
        experiment.report_changes(state["options"], effective_yaml(options))
    elif auto_resume:
        logger.info("auto_resume: no valid state in '%s'; starting from the beginning", folder)
    if process.is_main:
        for name in ("models", "training_states", "."):
            remove_leftovers(folder / name)
    return state


def _training_data(options: Options) -> tuple[DatasetOptions, PairedImageDataset]:
    key, data = training_set(options)
    read_gt = MODELS.get(options.model_type).needs_ground_truth
    return data, build_dataset(data, options.scale, "train", options.manual_seed, key, read_gt)


def _train(options: Options, process: Process, checkpoints: Checkpoints, recorder: Recorder,
           state: dict[str, Any] | None, data: DatasetOptions, dataset: PairedImageDataset,
           validation_data: dict[str, PairedImageDataset]) -> None:
    """Run the model's stage."""
    model, settings = checkpoints.model, options.train
    assert settings is not None
    model.prepare_training(dataset)
    stage = model.stage()
    ema = Ema(model.trained[stage.label], settings.ema_decay) if settings.ema_decay else None
    progress = checkpoints.restore(state, ema) if state is not None else Progress()
    start, began = progress.iteration, time.monotonic()

    def log(iteration: int, losses: dict[str, float]) -> None:
        rate = stage.optimizers[0].param_groups[0]["lr"]
        terms = "".join(f", {name} {value:.4e}" for name, value in losses.items())
        seconds = (time.monotonic() - began) / (iteration - start)
        left = int(seconds * (settings.total_iter - iteration))
        logger.info("[%s] iteration %d/%d, lr %.3e%s, %.2f s/it, ETA %d:%02d:%02d", options.name, iteration,
                    settings.total_iter, rate, terms, seconds, left // 3600, left // 60 % 60, left % 60)
        recorder.scalars({f"losses/{name}": value for name, value in losses.items()} | {"lr": rate}, iteration)

    def save(iteration: int) -> None:
        if process.is_main:
            checkpoints.save(progress, ema)
        process.barrier()

    validator = Validator(validation_data, model, ema, process, checkpoints, recorder, progress)
    val_freq = options.val.val_freq if options.val is not None else settings.total_iter
    hooks = Hooks(log, validator.validate, save, options.logger.print_freq, val_freq,
                  options.logger.save_checkpoint_freq)
    schedule = SCHEDULERS.build("Constant") if settings.scheduler is None else settings.scheduler.build(SCHEDULERS)
    loop = Loop(stage, settings, schedule, process, progress, ema, hooks, options.find_unused_parameters)
    if state is not None:
        loop.resume()
    logger.info("stage '%s': iterations %d to %d on %s, %d process(es)", stage.name, start + 1, settings.total_iter,
                process.device, process.world_size)
    loop.run(build_train_loader(
        dataset, data, seed=options.manual_seed, total_iter=settings.total_iter, start_iteration=start,
        rank=process.rank, world_size=process.world_size, accumulation=settings.accumulation))
    if process.is_main:
        checkpoints.save_networks("latest", ema, progress.iteration)
