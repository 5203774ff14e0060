"""Restoring a data set and measuring the result, sharded over the processes."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.engine.distributed import Process
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.images import to_image, write_image
from basicsr_quant.io.progress import track
from basicsr_quant.metrics.perceptual import prepare
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.component import MetricOptions
from basicsr_quant.options.types import ValOptions
from basicsr_quant.registry import METRICS

logger = logging.getLogger("basicsr_quant")


@dataclass(frozen=True)
class Results:
    """Metrics of one data set.

    Attributes:
        rows: Image name -> metric -> value, sorted by name; empty without ground truth.
        images: Number of restored images.
        seconds: Wall-clock time of restoring, measuring and writing.
    """

    rows: dict[str, dict[str, float]]
    images: int
    seconds: float

    @property
    def mean(self) -> dict[str, float]:
        """Metric -> average over the images in float64, in the order of the names."""
        names = next(iter(self.rows.values()), {})
        return {name: float(np.mean([row[name] for row in self.rows.values()], dtype=np.float64)) for name in names}

    def write_csv(self, path: Path) -> None:
        """Write one line per image and the average."""
        names = list(self.mean)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", *names])
        for image, row in [*self.rows.items(), ("AVERAGE", self.mean)]:
            writer.writerow([image, *(f"{row[name]:.6f}" for name in names)])
        write_text(path, text.getvalue())


def measure(restored: torch.Tensor, target: torch.Tensor, metrics: dict[str, MetricOptions]) -> dict[str, float]:
    """Return every metric of one image; tensors are (3, H, W) in [0, 1] and are rounded to 8 bits first."""
    image, reference = to_image(restored), to_image(target)
    return {name: float(METRICS.get(metric.type)(image, reference, **metric.arguments))
            for name, metric in metrics.items()}


def prepare_metrics(options: ValOptions) -> None:
    """Build the networks of all metrics, so that a missing file is noticed before the run and not after it.

    Raises:
        UserError: A file is missing.
    """
    for metric in options.metrics.values():
        prepare(metric.type, metric.arguments)


def evaluate(model: RestorationModel, dataset: PairedImageDataset, process: Process, name: str,
             network: nn.Module | None = None, image_folder: Path | None = None, suffix: str | None = None) -> Results:
    """Restore every image of a data set and measure it by ``val:metrics``.

    Args:
        model: The method.
        dataset: Whole images; those without ground truth are restored and not measured.
        process: Each process takes every ``world_size``-th image; results are gathered on all of them.
        name: Name of the data set, for messages.
        network: Weights to use in place of the model's (an average, say).
        image_folder: Where to write the restored images, or None.
        suffix: Appended to the file names of the images.

    Raises:
        UserError: Some images could not be read or restored; the others were processed before.
    """
    options = model.options.val
    assert options is not None
    began = time.monotonic()
    restoring = network if network is not None else model.network
    rows: dict[str, dict[str, float]] = {}
    failures: list[str] = []
    shard: Iterable[int] = range(process.rank, len(dataset), process.world_size)
    with model.inference_form(restoring):
        for index in track(shard, f"restoring {name}") if process.is_main and options.pbar else shard:
            try:
                sample = dataset[index]
                restored = model.restore(sample["lq"][None], restoring, (index,))[0]
                if not torch.isfinite(restored).all():
                    raise UserError(f"'{sample['lq_path']}': {_cause(restoring)}")
                if image_folder is not None:
                    stem = sample["name"] + (f"_{suffix}" if suffix else "")
                    write_image(image_folder / f"{stem}.png", to_image(restored))
                if "gt" in sample:
                    rows[sample["name"]] = (measure(restored, sample["gt"], options.metrics)
                                            | model.own_measures(sample, index, restoring))
            except UserError as error:
                logger.warning("%s", error)
                failures.append(str(error))
    merged = {image: row for part in process.gather(rows) for image, row in part.items()}
    failures = [failure for part in process.gather(failures) for failure in part]
    if failures:
        raise UserError(f"{len(failures)} of {len(dataset)} images of '{name}' failed; first: {failures[0]}")
    return Results(dict(sorted(merged.items())), len(dataset), time.monotonic() - began)


def _cause(network: nn.Module) -> str:
    """Say why an output is not finite."""
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the network's weight '{name}' holds NaN or infinite values; choose an earlier checkpoint"
    return "the network's output holds NaN or infinite values; its activations overflow"
