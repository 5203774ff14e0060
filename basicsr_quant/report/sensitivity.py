"""What few bits cost each layer of a network, and a plan of mixed widths for the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from basicsr_quant.data.build import build_dataset
from basicsr_quant.engine.datasets import training_set
from basicsr_quant.engine.distributed import choose_device
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.progress import track
from basicsr_quant.models.tdquant import TDQuantModel
from basicsr_quant.models.tdquant_plan import mixed_plan, plan_of
from basicsr_quant.options.load import effective_yaml
from basicsr_quant.options.methods.tdquant import TDQuantOptions
from basicsr_quant.quant.accounting import account
from basicsr_quant.quant.sensitivity import allocate, layer_errors, planned_layers
from basicsr_quant.report.plots import new_figure, write_png


@dataclass(frozen=True)
class Sensitivity:
    """What was measured, and what follows from it.

    Attributes:
        weights: Layer -> number of weights.
        errors: Layer -> bits -> mean squared change of the output when only this layer is quantized.
        bits: Layer -> chosen width.
        options: The options with the plan that says so.
        packed_bytes: Of the network under that plan: codes, bounds, rest in float32.
        uniform_bytes: The same with ``bit`` everywhere.
    """

    weights: dict[str, int]
    errors: dict[str, dict[int, float]]
    bits: dict[str, int]
    options: TDQuantOptions
    packed_bytes: int
    uniform_bytes: int


def measure(options: TDQuantOptions, widths: Sequence[int], budget: int | None) -> Sensitivity:
    """Calibrate the network at each width, quantize one layer at a time, and choose widths.

    Args:
        options: Of a training; calibration patches are those of the training.
        widths: Bits to choose from.
        budget: Bytes that the network may take (codes, bounds, rest in float32); None = as many as with ``bit``
            everywhere.

    Raises:
        UserError: There is no ``bit``, or the budget is too small.
    """
    if options.bit is None:
        raise UserError("bit is missing; it is the uniform width to compare with, for example --force_yml bit=3")
    device = choose_device(options.num_gpu, options.gpu)
    key, data = training_set(options)
    dataset = build_dataset(data, options.scale, "train", options.manual_seed, key, read_gt=False)
    patches = TDQuantModel(options, device).calibration_patches(dataset).lq.to(device)
    batches = patches.split(options.quant.calibration.batch_size)
    weights = planned_layers(_full_precision(options), plan_of(options))
    errors: dict[str, dict[int, float]] = {name: {} for name in weights}
    for bits in sorted(set(widths)):
        model = TDQuantModel(msgspec.structs.replace(options, bit=bits), device)
        model.load_pretrained(training=True)
        model.prepare_training(dataset)
        for name, error in track(layer_errors(model.network, list(weights), batches), f"layers at {bits} bits",
                                 len(weights)):
            errors[name][bits] = error
    uniform = _packed_bytes(options)
    room = (uniform if budget is None else budget) - uniform
    try:
        chosen = allocate(errors, weights, options.bit * sum(weights.values()) + 8 * room)
    except ValueError as error:
        raise UserError(f"--budget: {budget} bytes are too few; the network takes {uniform} at {options.bit} bits, and "
                        f"{uniform - options.bit * sum(weights.values()) // 8} of them are not weights to be quantized"
                        ) from error
    quant = msgspec.structs.replace(options.quant, plan=mixed_plan(options, chosen))
    mixed = msgspec.structs.replace(options, name=f"{options.name}_mixed", quant=quant)
    return Sensitivity(weights, errors, chosen, mixed, _packed_bytes(mixed), uniform)


def _full_precision(options: TDQuantOptions) -> torch.nn.Module:
    with torch.device("meta"):
        return TDQuantModel.unprepared(options)


def _packed_bytes(options: TDQuantOptions) -> int:
    side = options.quant.calibration.patch_size
    with torch.device("meta"):
        return account(TDQuantModel.skeleton(options), (1, 3, side, side)).packed_bytes


def summary(found: Sensitivity) -> list[str]:
    """Return lines for a terminal: bytes, how many layers got how many bits, the most sensitive layers."""
    lowest = min(next(iter(found.errors.values())))
    worst = sorted(found.errors, key=lambda name: -found.errors[name][lowest])[:10]
    counts = Counter(found.bits.values())
    return [
        f"{len(found.bits)} layers; bytes {found.packed_bytes:,}, with {found.options.bit} bits everywhere "
        f"{found.uniform_bytes:,}",
        "widths: " + ", ".join(f"{bits} bits in {counts[bits]} layers" for bits in sorted(counts)),
        f"most sensitive at {lowest} bits (mean squared change of the output when only this layer is quantized):",
        *(f"  {name}  {found.errors[name][lowest]:.3e}  -> {found.bits[name]} bits" for name in worst),
    ]


def as_dict(found: Sensitivity) -> dict[str, Any]:
    """Return everything as plain types."""
    return {
        "uniform_bits": found.options.bit, "packed_bytes": found.packed_bytes, "uniform_bytes": found.uniform_bytes,
        "layers": [{"name": name, "weights": found.weights[name], "bits": found.bits[name],
                    "errors": {str(bits): error for bits, error in found.errors[name].items()}}
                   for name in found.weights],
    }


def write(found: Sensitivity, folder: Path) -> Path:
    """Write ``sensitivity.json``, ``sensitivity.png`` and the option file of the mixed plan; return the last."""
    write_text(folder / "sensitivity.json", json.dumps(as_dict(found), indent=1))
    figure = new_figure(max(8.0, 0.13 * len(found.weights)), 5)
    axes = figure.add_subplot()
    for bits in sorted(next(iter(found.errors.values()))):
        axes.semilogy([found.errors[name][bits] for name in found.weights], marker=".", label=f"{bits} bits")
    axes.semilogy([found.errors[name].get(bits) for name, bits in found.bits.items()], "ko", fillstyle="none",
                  label="chosen")
    axes.set_xticks(range(len(found.weights)), list(found.weights), rotation=90, fontsize=5)
    axes.set(ylabel="mean squared change of the output", title="only this layer is quantized")
    axes.grid(alpha=0.3)
    axes.legend()
    write_png(figure, folder / "sensitivity.png")
    path = folder / f"{found.options.name}.yml"
    write_text(path, effective_yaml(found.options))
    return path
