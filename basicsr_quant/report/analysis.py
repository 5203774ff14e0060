"""The analysis of a run: made from an option file, kept as ``analysis.json`` and in TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.engine.datasets import open_datasets
from basicsr_quant.engine.distributed import processes
from basicsr_quant.engine.setup import make_deterministic, seed_everything
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.progress import reporter
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.types import Options
from basicsr_quant.quant.analysis import Analysis, analyse
from basicsr_quant.registry import MODELS

logger = logging.getLogger("basicsr_quant")

FILE = "analysis.json"
Sample = tuple[torch.Tensor, int]


def run_analysis(options: Options, images: int, size: int) -> dict[str, Any]:
    """Analyse the model of a test's options on the first images of its first test set.

    Args:
        options: As :func:`basicsr_quant.engine.test.test` takes them.
        images: How many.
        size: Side of the central crop of each in LR pixels, 0 for whole images.

    Returns:
        What is written to ``analysis.json``; ratios that are not finite are None.

    Raises:
        UserError: There is no test set, or nothing in the network is quantized.
    """
    datasets = open_datasets(options, "test")
    if not datasets:
        raise UserError("datasets: no test set is there to be analysed; name one as datasets:test_1")
    name, dataset = next(iter(datasets.items()))
    with processes("none", options.num_gpu, options.gpu, options.dist_params.backend, options.dist_params.port) as here:
        make_deterministic(options.deterministic)
        seed_everything(options.manual_seed)
        model: RestorationModel = MODELS.build(options.model_type, options, here.device)
        model.load_pretrained(training=False)
        model.prepare_testing()
        network = model.network.eval()
        count = min(images, len(dataset))
        samples = [_sample(dataset, index, model, size) for index in range(count)]
        found = analyse(network, samples, forward=lambda sample: model.restore(sample[0], network, (sample[1],)),
                        on_progress=reporter("analysis"))
    cut = f", central {size}x{size} LR pixels" if size else ""
    return {"name": options.name, "model_type": options.model_type, "images": count,
            "data": f"first {count} of {len(dataset)} images of '{name}'{cut}", **_plain(found)}


def _sample(dataset: PairedImageDataset, index: int, model: RestorationModel, size: int) -> Sample:
    image: torch.Tensor = dataset[index]["lq"]
    side = size * (model.options.scale if model.condition_at_target_size else 1)
    if side:
        rows, columns = (min(side, length) for length in image.shape[1:])
        top, left = ((length - part) // 2 for length, part in zip(image.shape[1:], (rows, columns), strict=True))
        image = image[:, top:top + rows, left:left + columns]
    return image[None], index


def _plain(analysis: Analysis) -> dict[str, Any]:
    def value(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {key: value(item) for key, item in x.items()}
        if isinstance(x, list | tuple):
            return [value(item) for item in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    plain: dict[str, Any] = value(asdict(analysis))
    return plain


def write_analysis(content: Mapping[str, Any], folder: Path) -> Path:
    """Write ``analysis.json`` into a folder and return its path."""
    path = folder / FILE
    write_text(path, json.dumps(content))
    return path


def write_tensorboard(content: Mapping[str, Any], folder: Path) -> None:
    """Write curves over the layers (their number in the place of the iteration) and a histogram for each tensor.

    Event files of an earlier analysis in the folder are replaced.

    Raises:
        UserError: The folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    try:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(folder)) as writer:
            lines = []
            for number, layer in enumerate(content["layers"]):
                lines.append(f"{number} {layer['name']}")
                for key in ("teacher_forced", "cumulative"):
                    if layer[key] is not None:
                        writer.add_scalar(f"sqnr/{key}", layer[key], number)
                for tensor in layer["tensors"]:
                    _write_tensor(writer, layer["name"], tensor, number)
            writer.add_text("layers", "\n".join(f"    {line}" for line in lines))
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error.strerror or error}; choose another path:tb_root"
                        ) from error


def _write_tensor(writer: Any, layer: str, tensor: Mapping[str, Any], number: int) -> None:
    for key in ("lower", "upper", "clipped"):
        if tensor["kind"] == "input":
            writer.add_scalar(f"input/{key}", tensor[key], number)
    counts = np.array(tensor["counts"])
    edges = np.linspace(tensor["minimum"], tensor["maximum"], len(counts) + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    writer.add_histogram_raw(
        f"{tensor['kind']}/{layer}{'.' * bool(tensor['name'])}{tensor['name']}", tensor["minimum"], tensor["maximum"],
        int(counts.sum()), float(counts @ middles), float(counts @ middles**2), edges[1:].tolist(), counts.tolist(), 0)
