"""``test.py``: restore and measure the test sets of an option file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from basicsr_quant.data.build import missing_folders
from basicsr_quant.engine import experiment
from basicsr_quant.engine.datasets import open_datasets
from basicsr_quant.engine.distributed import processes
from basicsr_quant.engine.evaluation import Results, evaluate, prepare_metrics
from basicsr_quant.engine.setup import make_deterministic, seed_everything
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import effective_yaml
from basicsr_quant.options.types import Options, datasets_of_phase
from basicsr_quant.registry import MODELS

logger = logging.getLogger("basicsr_quant")


Execute = Callable[[RestorationModel], None]
"""Gives a model that is ready to test to the backend ``val:backend``."""


def test(options: Options, execute: Execute, launcher: str = "none") -> dict[str, Results]:
    """Evaluate a model on all test sets that are there; images, CSV and ``metrics.json`` go to the results folder.

    Args:
        options: Typed options with a ``val`` block and ``datasets:test_N``.
        execute: See :data:`Execute`; :func:`basicsr_quant.deploy.execute.execute`.
        launcher: ``none``, ``pytorch`` or ``slurm``.

    Returns:
        Name of the data set -> results.

    Raises:
        UserError: Anything a user can mend. When images failed, all others of all sets were processed before; the
            means of their sets are left out.
    """
    if options.val is None:
        raise UserError("val: the option file has no 'val' block, so there is nothing to measure")
    dist = options.dist_params
    with processes(launcher, options.num_gpu, options.gpu, dist.backend, dist.port) as process:
        folder = experiment.results_folder(options)
        if process.is_main:
            experiment.archive(folder)
        process.barrier()
        experiment.start_logging(folder, f"test_{options.name}", process.is_main)
        make_deterministic(options.deterministic)
        seed_everything(options.manual_seed)
        datasets = open_datasets(options, "test")
        if not datasets:
            absent = [folder for _, data in datasets_of_phase(options, "test") for folder in missing_folders(data)]
            first = f" ('{absent[0]}' does not exist)" if absent else ""
            raise UserError(f"datasets: no test set is there{first}; name one as datasets:test_1, or correct its "
                            "folders")
        model: RestorationModel = MODELS.build(options.model_type, options, process.device)
        model.load_pretrained(training=False)
        model.prepare_testing()
        prepare_metrics(options.val)
        model.network.eval()
        execute(model)
        if process.is_main:
            experiment.save_options(folder, f"test_{options.name}", effective_yaml(options))
        everything = {}
        for name, dataset in datasets.items():
            images = folder / "visualization" / name if options.val.save_img else None
            suffix = options.name if options.val.suffix is None else options.val.suffix
            results = evaluate(model, dataset, process, name, None, images, suffix)
            everything[name] = results
            if process.is_main:
                _report(name, results, folder)
        if process.is_main:
            summary = {name: {"mean": results.mean, "images": results.images, "seconds": results.seconds}
                       for name, results in everything.items() if not results.failures}
            write_text(folder / "metrics.json", json.dumps(summary, indent=1))
        for results in everything.values():
            results.check()
        return everything


def _report(name: str, results: Results, folder: Path) -> None:
    mean = ", ".join(f"{metric} {value:.4f}" for metric, value in results.mean.items())
    if results.failures:
        logger.warning("%s: %d of %d images failed, no mean", name, len(results.failures), results.images)
    else:
        logger.info("%s: %s (%.1f s)", name, mean or "no ground truth, images only", results.seconds)
    if results.rows:
        results.write_csv(folder / f"{name}.csv")
