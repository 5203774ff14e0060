"""What trainings recorded: losses and validation metrics over the iterations, from logs or TensorBoard files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from basicsr_quant.errors import UserError

Curve = dict[int, float]
Curves = dict[str, Curve]

LOG = "train_*.log"
EVENTS = "events.out.tfevents.*"
_STEP = re.compile(r"\] iteration (\d+)/\d+, lr \S+?, (.*), [\d.]+ s/it, ETA ")
_VALIDATION = re.compile(r"validation (.+), iteration (\d+): (.*)$")


@dataclass(frozen=True)
class Training:
    """One run of ``train.py``.

    Attributes:
        name: Of its folder.
        losses: Term -> iteration -> value.
        metrics: Data set and metric, ``Set5 psnr`` -> iteration -> value.
    """

    name: str
    losses: Curves
    metrics: Curves


def is_training(folder: Path) -> bool:
    """Whether ``train.py`` wrote a folder: ``experiments/NAME``, or ``tb_logger/NAME`` with TensorBoard files."""
    return any(True for pattern in (LOG, EVENTS) for _ in folder.glob(pattern))


def read_training(folder: Path) -> Training:
    """Read the curves of a training; of an iteration that was run twice the last value, none that is not finite.

    Args:
        folder: ``experiments/NAME``, whose log is read, or ``tb_logger/NAME``, in full precision.

    Raises:
        UserError: It is neither, or it recorded nothing.
    """
    if not is_training(folder):
        raise UserError(f"'{folder}' holds neither {LOG} nor TensorBoard files; name a folder that train.py wrote, "
                        "such as experiments/NAME or tb_logger/NAME")
    logs = sorted(folder.glob(f"{LOG}*"), key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 0)
    losses, metrics = _of_log(logs) if logs else _of_events(folder)
    if not losses and not metrics:
        raise UserError(f"'{folder}' holds no loss and no validation; its training ended before logger:print_freq")
    return Training(folder.name, losses, metrics)


def recorded_scalars(folder: Path) -> Curves:
    """Return tag -> iteration -> value of the TensorBoard files in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def _of_events(folder: Path) -> tuple[Curves, Curves]:
    losses, metrics = Curves(), Curves()
    for tag, curve in recorded_scalars(folder).items():
        kind, _, name = tag.partition("/")
        known = {step: value for step, value in curve.items() if math.isfinite(value)}
        if kind == "losses":
            losses[name] = known
        elif kind == "metrics":
            metrics[" ".join(name.rsplit("/", 1))] = known
    return losses, metrics


def _of_log(paths: Iterable[Path]) -> tuple[Curves, Curves]:
    """Read log files, the oldest first."""
    losses, metrics = Curves(), Curves()
    for path in paths:
        for line in path.read_text(errors="replace").splitlines():
            if found := _STEP.search(line):
                _add(losses, "", int(found[1]), found[2])
            elif found := _VALIDATION.search(line):
                _add(metrics, f"{found[1]} ", int(found[2]), found[3])
    return losses, metrics


def _add(curves: Curves, prefix: str, iteration: int, text: str) -> None:
    """Add ``name value, name value`` of a log line."""
    for name, value in re.findall(r"(\S+) (-?[\d.]+(?:e[+-]?\d+)?)(?:, |$)", text):
        curves.setdefault(prefix + name, {})[iteration] = float(value)
