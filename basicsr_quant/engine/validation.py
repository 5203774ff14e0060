"""Validation between iterations: every validation set, and the best file."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.engine.checkpoint import Best, Checkpoints, Progress
from basicsr_quant.engine.distributed import Process
from basicsr_quant.engine.ema import Ema
from basicsr_quant.engine.evaluation import evaluate
from basicsr_quant.engine.record import Recorder
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.component import MetricOptions

logger = logging.getLogger("basicsr_quant")


@dataclass
class Validator:
    """Measures the averaged weights, or else the trained ones; the first metric of the first set chooses the best."""

    datasets: Mapping[str, PairedImageDataset]
    model: RestorationModel
    ema: Ema | None
    process: Process
    checkpoints: Checkpoints
    recorder: Recorder
    progress: Progress

    def validate(self, iteration: int) -> None:
        """Restore and measure all sets.

        Raises:
            UserError: An image could not be read or restored.
        """
        options = self.model.options.val
        if options is None or not self.datasets:
            return
        network = self.ema.network if self.ema is not None else self.model.network
        network.eval()
        for position, (name, dataset) in enumerate(self.datasets.items()):
            folder = self._images(name) if options.save_img else None
            results = evaluate(self.model, dataset, self.process, name, network, folder, str(iteration))
            results.check()
            mean = results.mean
            logger.info("validation %s, iteration %d: %s", name, iteration,
                        ", ".join(f"{metric} {value:.4f}" for metric, value in mean.items()))
            self.recorder.scalars({f"metrics/{name}/{metric}": value for metric, value in mean.items()}, iteration)
            if position == 0 and mean:
                self._keep_best(mean, options.metrics, iteration)
        self.model.network.train(self.model.trains_in_train_mode)

    def _images(self, name: str) -> Path:
        return self.checkpoints.folder / "visualization" / name

    def _keep_best(self, mean: dict[str, float], metrics: dict[str, MetricOptions], iteration: int) -> None:
        name = next(iter(mean))
        sign = 1 if metrics[name].better == "higher" else -1
        best = self.progress.best
        if math.isnan(mean[name]) or (best.iteration and sign * mean[name] <= sign * best.value):
            return
        if self.process.is_main:
            self.checkpoints.save_networks("best", self.ema, iteration)
        self.progress.best = Best(name, mean[name], iteration)
