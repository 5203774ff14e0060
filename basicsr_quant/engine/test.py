"""``test.py``: restore and measure the test sets of an option file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from basicsr_quant.data.build import build_dataset
from basicsr_quant.engine import experiment
from basicsr_quant.engine.distributed import processes
from basicsr_quant.engine.setup import make_deterministic, seed_everything
from basicsr_quant.engine.train import present
from basicsr_quant.engine.validation import Results, evaluate
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import datasets_of_phase, effective_yaml
from basicsr_quant.options.types import Options
from basicsr_quant.registry import MODELS

logger = logging.getLogger("basicsr_quant")


def test(options: Options, launcher: str = "none") -> dict[str, Results]:
    """Evaluate a model on every test set that is there; write images, CSV files and ``metrics.json`` to the results folder.

    Args:
        options: Typed options with a ``val`` block and ``datasets:test_N``.
        launcher: ``none``, ``pytorch`` or ``slurm``.

    Returns:
        Name of the data set -> results.

    Raises:
        UserError: Anything a user can mend.
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
        found = [(key, data) for key, data in datasets_of_phase(options, "test") if present(key, data)]
        if not found:
            raise UserError("datasets: no test set is there; name one as datasets:test_1, or correct its folders")
        datasets = [(data.name, build_dataset(data, options.scale, "test", options.manual_seed, key)) for key, data in found]
        model: RestorationModel = MODELS.build(options.model_type, options, process.device)
        model.load_pretrained()
        model.prepare_testing()
        model.network.eval()
        if process.is_main:
            experiment.save_options(folder, f"test_{options.name}", effective_yaml(options))
        everything = {}
        for name, dataset in datasets:
            images = folder / "visualization" / name if options.val.save_img else None
            results = evaluate(model, dataset, process, name, options.val.metrics, None, images, options.val.suffix or options.name)
            everything[name] = results
            if process.is_main:
                _report(name, results, folder)
        if process.is_main:
            summary = {name: {"mean": r.mean, "images": len(r.rows), "seconds": r.seconds} for name, r in everything.items()}
            write_text(folder / "metrics.json", json.dumps(summary, indent=1))
        return everything


def _report(name: str, results: Results, folder: Path) -> None:
    mean = ", ".join(f"{metric} {value:.4f}" for metric, value in results.mean.items())
    logger.info("%s: %s (%.1f s)", name, mean or "no ground truth, images only", results.seconds)
    results.write_csv(folder / f"{name}.csv")
