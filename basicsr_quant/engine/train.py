"""``train.py``: from an option file to trained weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from basicsr_quant.data.build import build_dataset
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.engine import experiment
from basicsr_quant.engine.checkpoint import Checkpoints, newest_valid, read_state
from basicsr_quant.engine.datasets import open_datasets, training_set
from basicsr_quant.engine.distributed import Process, processes
from basicsr_quant.engine.evaluation import prepare_metrics
from basicsr_quant.engine.record import Recorder
from basicsr_quant.engine.setup import make_deterministic, seed_everything
from basicsr_quant.engine.stages import Training
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import remove_leftovers
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import effective_yaml
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
        if options.val is not None and validation_data:
            prepare_metrics(options.val)
        checkpoints = Checkpoints(folder, model, effective_yaml(options))
        if process.is_main:
            experiment.save_options(folder, f"train_{options.name}", checkpoints.options_text)
        recorder = Recorder(options, process.is_main)
        try:
            Training(options, process, checkpoints, recorder, data, dataset, validation_data).run(state)
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
