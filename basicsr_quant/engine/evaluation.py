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
from torch import nn

from basicsr_quant.data.paired import PairedImageDataset, Sample
from basicsr_quant.engine.distributed import Process
from basicsr_quant.errors import UserError, WriteError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.images import Image, to_image, write_image
from basicsr_quant.io.progress import track
from basicsr_quant.metrics.perceptual import prepare
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.models.restoring import restore_file
from basicsr_quant.options.component import MetricOptions
from basicsr_quant.options.types import ValOptions
from basicsr_quant.registry import METRICS

logger = logging.getLogger("basicsr_quant")


@dataclass(frozen=True)
class Results:
    """Metrics of one data set.

    Attributes:
        rows: Image name -> metric -> value, sorted by name; empty without ground truth.
        images: Number of images.
        seconds: Wall-clock time of restoring, measuring and writing.
        name: Of the data set.
        failures: One line for each image that could not be read or restored.
    """

    rows: dict[str, dict[str, float]]
    images: int
    seconds: float
    name: str = ""
    failures: tuple[str, ...] = ()

    @property
    def mean(self) -> dict[str, float]:
        """Metric -> average over the images in float64, in the order of the names."""
        names = next(iter(self.rows.values()), {})
        return {name: float(np.mean([row[name] for row in self.rows.values()], dtype=np.float64)) for name in names}

    def check(self) -> None:
        """Make sure that all images were restored.

        Raises:
            UserError: Some failed; the message says how many and why the first did.
        """
        if self.failures:
            raise UserError(f"{len(self.failures)} of {self.images} images of '{self.name}' failed; first: "
                            f"{self.failures[0]}")

    def write_csv(self, path: Path) -> None:
        """Write one line per image and, if none failed, the average; a name that is no UTF-8 is escaped."""
        names = list(self.mean)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", *names])
        for image, row in [*self.rows.items(), *([] if self.failures else [("AVERAGE", self.mean)])]:
            writer.writerow([image.encode(errors="backslashreplace").decode(), *(f"{row[name]:.6f}" for name in names)])
        write_text(path, text.getvalue())


def measure(restored: Image, sample: Sample, metrics: dict[str, MetricOptions]) -> dict[str, float]:
    """Return every metric of one image (H, W, 3); the target, ``gt`` (3, H, W) in [0, 1], is rounded to 8 bits first.

    Raises:
        UserError: The image cannot be measured; it is too small, say.
    """
    restored, reference = np.ascontiguousarray(restored), to_image(sample["gt"])
    try:
        return {name: float(METRICS.get(metric.type)(restored, reference, **metric.arguments))
                for name, metric in metrics.items()}
    except UserError as error:
        raise UserError(f"'{sample['gt_path']}': {error}") from error


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

    Returns:
        Measurements, and the failures of images that could not be read or restored; all others are processed.

    Raises:
        WriteError: An image could not be written.
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
                restored = restore_file(model, sample["lq"][None], restoring, index, sample["lq_path"])
                if "gt" not in sample:
                    del sample["lq"]  # a large one is not kept while its result is encoded
                if image_folder is not None:
                    stem = sample["name"] + (f"_{suffix}" if suffix else "")
                    write_image(image_folder / f"{stem}.png", restored)
                if "gt" in sample:
                    rows[sample["name"]] = (measure(restored, sample, options.metrics)
                                            | model.own_measures(sample, index, restoring))
            except WriteError:
                raise
            except UserError as error:
                logger.warning("%s", error)
                failures.append(str(error))
    merged = {image: row for part in process.gather(rows) for image, row in part.items()}
    failures = [failure for part in process.gather(failures) for failure in part]
    return Results(dict(sorted(merged.items())), len(dataset), time.monotonic() - began, name, tuple(failures))
