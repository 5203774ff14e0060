"""The contract between a method and the engine."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from basicsr_quant import randomness
from basicsr_quant.archs.padding import run_padded
from basicsr_quant.archs.self_ensemble import self_ensemble
from basicsr_quant.archs.tiling import parts, tiled
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.options.types import Options
from basicsr_quant.quant.layers.weighted import frozen_weights

Batch = dict[str, Any]


class LearningRateSchedule(Protocol):
    """A pure function of the iteration, so that resuming needs nothing else."""

    def factor(self, step: int, base: float) -> float:
        """Return the learning rate after ``step`` iterations over the base rate."""
        ...


@dataclass
class Stage:
    """What the loop needs to train: a step that gives losses, and optimizers with their base learning rates.

    Attributes:
        name: For the log.
        label: Name of the trained network in checkpoint files.
        step: Module whose ``forward(batch)`` returns a map of scalar losses, to be summed; it is what DDP wraps.
        optimizers: One or more, over parameters of ``step``.
        after_step: Called after each optimizer step, for instance to keep bounds ordered.
        before_step: Called before each iteration with the finished part of the stage, from 0 to below 1.
        schedule: In place of ``train:scheduler``; sees the iteration within the stage.
        dataset: In place of the training set.
        after_iteration: Called after each iteration, also one whose step was left out as a loss was not finite.
    """

    name: str
    label: str
    step: nn.Module
    optimizers: list[torch.optim.Optimizer]
    after_step: Callable[[], None] | None = None
    before_step: Callable[[float], None] | None = None
    schedule: LearningRateSchedule | None = None
    dataset: PairedImageDataset | None = None
    after_iteration: Callable[[], None] | None = None
    base_rates: list[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]


class RestorationModel(abc.ABC):
    """A method: builds its networks, supplies training stages, restores images, names its weights in files.

    Args:
        options: Typed options of this method.
        device: Where the networks live.
    """

    needs_ground_truth = True
    condition_at_target_size = False
    knows_tiles = True
    _network: nn.Module

    def __init__(self, options: Options, device: torch.device) -> None:
        self.options = options
        self.device = device

    @classmethod
    @abc.abstractmethod
    def skeleton(cls, options: Any) -> nn.Module:
        """Return the restoring network without weights, for the meta device, as ``inspect`` shows it."""

    @property
    @abc.abstractmethod
    def network(self) -> nn.Module:
        """The network that restores images."""

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """Label -> network, for those that checkpoints hold."""
        return {}

    @property
    def trains_in_train_mode(self) -> bool:
        """Whether the trained network is in ``train()`` mode while it learns (dropout and DropPath active)."""
        return True

    def prepare_training(self, dataset: PairedImageDataset) -> None:  # noqa: B027 (most methods need nothing)
        """Do what comes before the first iteration, such as calibration. Called again, with equal result, on resume.

        Args:
            dataset: The training set.
        """

    def prepare_testing(self) -> None:  # noqa: B027 (most methods need nothing)
        """Do what comes between loading and the first test image."""

    def adopt(self, network: nn.Module) -> None:
        """Restore images with a network that was made elsewhere, complete, on this model's device (a packed file's).

        Args:
            network: In the place of :attr:`network`.
        """
        self._network = network

    @property
    def self_ensemble(self) -> bool:
        """Whether images are restored as the average over eight flips and rotations."""
        return self.options.val is not None and self.options.val.self_ensemble

    @property
    def stage_lengths(self) -> Sequence[int]:
        """Iterations of each training stage; asked for after :meth:`prepare_training`."""
        assert self.options.train is not None
        return (self.options.train.total_iter,)

    @abc.abstractmethod
    def stage(self, index: int = 0) -> Stage:
        """Return a training stage; called when all earlier ones are done.

        It sees the weights with which the stage begins, also on resume: the interrupted weights are loaded afterwards.
        What it calibrates or caches is thus the same every time.
        """

    def inference_form(self, network: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which weights that do not change are rounded once."""
        return frozen_weights(network)

    @abc.abstractmethod
    def load_pretrained(self, training: bool) -> None:
        """Load the weights that the ``path`` options name, to train or to test them."""

    def export_state(self, label: str, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return a network's weights under their published names, on the CPU."""
        return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}

    @abc.abstractmethod
    def import_state(self, label: str, network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
        """Load weights given under their published names."""

    def metadata(self, label: str) -> dict[str, Any]:
        """Return plain facts to be stored with a network."""
        return {"model_type": self.options.model_type, "scale": self.options.scale}

    def own_measures(self, sample: Batch, index: int, network: nn.Module) -> dict[str, float]:
        """Return what the method measures of an image beside ``val:metrics``, by name.

        Args:
            sample: With ``lq`` (3, h, w), ``gt`` (3, H, W) and ``name``.
            index: Of the image in its data set.
            network: In its :meth:`inference_form`.
        """
        return {}

    def restore(self, image: torch.Tensor, network: nn.Module | None = None,
                samples: Sequence[int] = (0,)) -> torch.Tensor:
        """Enlarge images.

        Args:
            image: (B, 3, H, W) float in [0, 1] on any device.
            network: Used in place of :attr:`network` (the averaged weights, say).
            samples: Index of each image in its data set, for methods that draw noise.

        Returns:
            (B, 3, scale*H, scale*W) float32 on the image's device, not clamped.
        """
        network = network if network is not None else self.network
        tile, overlap = self._tile
        with torch.inference_mode():
            if tile:
                return tiled(self._upscaling(network), image, self.options.scale, tile, overlap).float()
            return self._upscaling(network)(image).to(image.device).float()

    @torch.inference_mode()
    def restore_parts(self, image: torch.Tensor, network: nn.Module | None = None,
                      sample: int = 0) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Enlarge one image and yield what is finished, tile by tile, so that nobody needs to hold it as a whole.

        Args:
            image: (1, 3, H, W), as for :meth:`restore`, as are the others.
            network: Used in place of :attr:`network`.
            sample: Index of the image in its data set.

        Yields:
            Rows, columns, and what :meth:`restore` gives there: (1, 3, rows, columns), on any device.
        """
        network = network if network is not None else self.network
        tile, overlap = self._tile
        if not tile:
            yield slice(None), slice(None), self.restore(image, network, (sample,))
            return
        for rows, columns, part in parts(self._upscaling(network), image, self.options.scale, tile, overlap):
            yield rows, columns, part.float()

    @property
    def _tile(self) -> tuple[int, int]:
        """Side and overlap of tiles in LR pixels; side 0 = whole images."""
        options = self.options.val
        return (options.tile, options.tile_overlap) if options is not None and self.knows_tiles else (0, 0)

    def _upscaling(self, network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what enlarges an image or a tile of it."""
        dtype = next(network.parameters()).dtype

        def run(tile: torch.Tensor) -> torch.Tensor:
            return run_padded(network, tile.to(self.device, dtype), self.options.scale,
                              getattr(network, "window_multiple", 1), getattr(network, "minimum_size", 0))

        return (lambda tile: self_ensemble(run, tile)) if self.self_ensemble else run


def forward_draws(network: nn.Module, batch: Batch, seed: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the random keyword arguments of a network's training forward, drawn for the batch's global samples.

    A network asks for them by ``training_draws(batch_size) -> {name: shape per sample}``; most ask for none.
    """
    wanted = getattr(network, "training_draws", None)
    if wanted is None:
        return {}
    samples = batch["sample"]
    return {name: randomness.uniform(seed, name, batch["iteration"], samples, shape).to(device)
            for name, shape in wanted(len(samples)).items()}
