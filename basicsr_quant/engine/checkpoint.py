"""Checkpoints: networks first, the training state last, so that a state on disk vouches for the files it names."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from basicsr_quant.engine.ema import Ema
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import save_torch
from basicsr_quant.io.weights import file_digest, load_file
from basicsr_quant.models.base import RestorationModel

Count = Annotated[int, msgspec.Meta(ge=0)]


@dataclass
class Best:
    """The best validation result so far."""

    metric: str = ""
    value: float = float("nan")
    iteration: int = 0


@dataclass
class Progress:
    """What a resumed run must know besides the networks.

    Attributes:
        iteration: Finished iterations, of all stages together.
        stage_start: The iterations of all finished stages; 0 in the first.
        optimizers: State of each optimizer.
        scaler: State of the gradient scaler.
        losses: Sums and count of the loss terms since the last log line.
        skipped: Steps that were left out, as a loss or gradient was not finite.
        best: The best validation result.
    """

    iteration: int = 0
    stage_start: int = 0
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    best: Best = field(default_factory=Best)


class _Optimizer(msgspec.Struct):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _Losses(msgspec.Struct):
    sums: dict[str, Any]
    count: Count


class _Best(msgspec.Struct):
    metric: str
    value: float
    iteration: Count


class _State(msgspec.Struct):
    """What a state file must hold."""

    format_version: Literal[1]
    iteration: Count
    stage_start: Count
    optimizers: list[_Optimizer]
    scaler: dict[str, Any]
    losses: _Losses
    best: _Best
    networks: dict[str, str]
    options: str
    skipped: Count = 0


class Checkpoints:
    """The ``models`` and ``training_states`` folders of one experiment.

    Args:
        folder: ``experiments/<name>``.
        model: Says how its networks are named in files.
        options_text: The effective options, stored in each state so that a resumed run can tell what changed.
    """

    def __init__(self, folder: Path, model: RestorationModel, options_text: str) -> None:
        self.folder = folder
        self.model = model
        self.options_text = options_text

    def network_file(self, label: str, tag: int | str) -> Path:
        """Return the path of a network's file; ``tag`` is an iteration, ``latest`` or ``best``."""
        return self.folder / "models" / f"net_{label}_{tag}.pth"

    def save_networks(self, tag: int | str, ema: Ema | None, iteration: int) -> dict[str, str]:
        """Write every trained network; return file name -> SHA-256."""
        digests = {}
        for label, network in self.model.trained.items():
            metadata = {"format_version": 1, "iteration": iteration, **self.model.metadata(label)}
            content = {"params": self.model.export_state(label, network), "metadata": metadata}
            if ema is not None and ema.label == label:
                content["params_ema"] = self.model.export_state(label, ema.network)
            path = self.network_file(label, tag)
            digests[path.name] = hashlib.sha256(save_torch(path, content)).hexdigest()
        return digests

    def save(self, progress: Progress, ema: Ema | None) -> None:
        """Write the networks and then the state that names their digests."""
        digests = self.save_networks(progress.iteration, ema, progress.iteration)
        if 0 < progress.stage_start < progress.iteration:
            starts = [self.network_file(label, progress.stage_start) for label in self.model.trained]
            digests |= {path.name: file_digest(path) for path in starts}
        save_torch(self.folder / "training_states" / f"{progress.iteration}.state", {
            **vars(progress), "format_version": 1, "best": vars(progress.best), "networks": digests,
            "options": self.options_text,
        })

    def load_networks(self, iteration: int, ema: Ema | None = None) -> None:
        """Load every trained network, and the average, as they were after an iteration.

        Raises:
            UserError: The networks do not fit the options.
        """
        for label, network in self.model.trained.items():
            path = self.network_file(label, iteration)
            if not path.is_file():
                raise UserError(f"'{path}' does not exist: the interrupted run trained no network '{label}'; resume "
                                "with its options, or start under another name")
            content = load_file(path)
            self.model.import_state(label, network, content["params"], path)
            if ema is not None and ema.label == label:
                if "params_ema" not in content:
                    raise UserError(f"'{path}' holds no averaged weights; resume without train:ema_decay")
                self.model.import_state(label, ema.network, content["params_ema"], path)


def progress_of(state: dict[str, Any]) -> Progress:
    """Return the counters and optimizer states of a training state."""
    names = ("iteration", "stage_start", "optimizers", "scaler", "losses")
    best, skipped = Best(**state["best"]), state.get("skipped", 0)
    return Progress(**{name: state[name] for name in names}, best=best, skipped=skipped)


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state and verify the networks that were saved with it.

    Raises:
        UserError: Damaged, or its networks are missing or not the ones that were saved with it.
    """
    state: dict[str, Any] = load_file(path)
    try:
        msgspec.convert(state, _State)
    except msgspec.ValidationError as error:
        raise UserError(f"'{path}' is no training state of this framework ({error}); choose another one") from error
    for name, digest in state["networks"].items():
        file = path.parent.parent / "models" / Path(name).name
        if not file.is_file():
            raise UserError(f"'{path}' belongs to '{file}', which does not exist")
        if file_digest(file) != digest:
            raise UserError(f"'{file}' is not the file that was saved with '{path}' (digests differ)")
    return state


def newest_valid(folder: Path) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """Find the newest state of an experiment that can be trusted.

    Returns:
        Its path and content (None if there is none), and why newer ones were passed over.
    """
    states = [path for path in folder.glob("training_states/*.state") if re.fullmatch(r"\d+", path.stem)]
    reasons: list[str] = []
    for path in sorted(states, key=lambda path: int(path.stem), reverse=True):
        try:
            return path, read_state(path), reasons
        except UserError as error:
            reasons.append(str(error))
    return None, None, reasons
