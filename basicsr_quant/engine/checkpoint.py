"""Checkpoints: networks first, the training state last, so that a state on disk vouches for the files it names."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from basicsr_quant.engine.ema import Ema
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import save_torch
from basicsr_quant.io.weights import file_digest, load_file
from basicsr_quant.models.base import RestorationModel

logger = logging.getLogger("basicsr_quant")


@dataclass
class Best:
    """The best validation result so far."""

    metric: str = ""
    value: float = float("nan")
    iteration: int = 0


@dataclass
class Progress:
    """What a resumed run must know besides the networks."""

    iteration: int = 0
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    best: Best = field(default_factory=Best)


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

    def state_file(self, iteration: int) -> Path:
        """Return the path of a training state."""
        return self.folder / "training_states" / f"{iteration}.state"

    def save_networks(self, tag: int | str, ema: Ema | None, iteration: int) -> dict[str, str]:
        """Write every trained network; return file name -> SHA-256."""
        digests = {}
        for label, network in self.model.trained.items():
            content = {"params": self.model.export_state(label, network), "metadata": self._metadata(label, iteration)}
            if ema is not None:
                content["params_ema"] = self.model.export_state(label, ema.network)
            path = self.network_file(label, tag)
            digests[path.name] = hashlib.sha256(save_torch(path, content)).hexdigest()
        return digests

    def _metadata(self, label: str, iteration: int) -> dict[str, Any]:
        return {"format_version": 1, "iteration": iteration, **self.model.metadata(label)}

    def save(self, progress: Progress, ema: Ema | None) -> None:
        """Write the networks and then the state that names their digests."""
        digests = self.save_networks(progress.iteration, ema, progress.iteration)
        save_torch(self.state_file(progress.iteration), {
            "format_version": 1,
            "iteration": progress.iteration,
            "optimizers": progress.optimizers,
            "scaler": progress.scaler,
            "best": vars(progress.best),
            "networks": digests,
            "options": self.options_text,
        })

    def read(self, path: Path) -> dict[str, Any]:
        """Read and verify a training state and the networks that it names.

        Raises:
            UserError: Damaged, or its networks are not the ones that were saved with it.
        """
        state = load_file(path)
        if not isinstance(state, dict) or "networks" not in state or "iteration" not in state:
            raise UserError(f"'{path}' is no training state of this framework")
        for name, digest in state["networks"].items():
            file = self.folder / "models" / Path(name).name
            if not file.is_file():
                raise UserError(f"'{path}' belongs to '{file}', which does not exist")
            if file_digest(file) != digest:
                raise UserError(f"'{file}' is not the file that was saved with '{path}' (digests differ)")
        return state

    def newest_valid(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest state that can be trusted, saying which newer ones were passed over, or None."""
        states = [p for p in self.folder.glob("training_states/*.state") if re.fullmatch(r"\d+", p.stem)]
        for path in sorted(states, key=lambda p: int(p.stem), reverse=True):
            try:
                return path, self.read(path)
            except UserError as error:
                logger.warning("auto_resume passes over a state: %s", error)
        return None

    def restore(self, state: dict[str, Any], ema: Ema | None) -> Progress:
        """Load the networks of a verified state and return its counters and optimizer states."""
        for label, network in self.model.trained.items():
            path = self.network_file(label, state["iteration"])
            content = load_file(path)
            self._load(label, network, content["params"], path)
            if ema is not None:
                if "params_ema" not in content:
                    raise UserError(f"'{path}' holds no averaged weights; resume without train:ema_decay")
                self._load(label, ema.network, content["params_ema"], path)
        return Progress(state["iteration"], state["optimizers"], state["scaler"], Best(**state["best"]))

    def _load(self, label: str, network: nn.Module, state: dict[str, Any], path: Path) -> None:
        self.model.import_state(label, network, state, path)
