"""The distillation steps of post-training quantization."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.losses.distillation import FEATURE_DISTANCES, pixel_distance
from basicsr_quant.models.base import Batch
from basicsr_quant.quant.foreign import QuantizedModel, inner_network
from basicsr_quant.quant.taps import FeatureTaps

Network = Callable[[torch.Tensor], torch.Tensor]


class Example(NamedTuple):
    """What a student gets, and what shall come out.

    Args:
        inputs: Of the student.
        target: Of its output's shape.
        features: The teacher's, in the order of the taps.
    """

    inputs: torch.Tensor
    target: torch.Tensor
    features: Sequence[torch.Tensor] = ()


class StudentStep(nn.Module, abc.ABC):
    """A quantized network against targets. Only what requires a gradient learns.

    Args:
        network: The student.
        pixel_loss: Called with the student's output and the target.
        pixel_normalization: See :func:`basicsr_quant.losses.distillation.pixel_distance`.
        taps: Names of the student's modules whose outputs are matched too.
        feature_weight: Factor of the feature term.
        feature_distance: Name in ``FEATURE_DISTANCES``.
    """

    def __init__(self, network: nn.Module, pixel_loss: nn.Module, pixel_normalization: str = "once",
                 taps: Sequence[str] = (), feature_weight: float = 0.0, feature_distance: str = "relative") -> None:
        super().__init__()
        self.network = network
        self.taps = tuple(taps)
        self.pixel_loss, self.pixel_normalization = pixel_loss, pixel_normalization
        self.feature_weight, self.feature_distance = feature_weight, FEATURE_DISTANCES[feature_distance]

    @abc.abstractmethod
    def example(self, batch: Batch) -> Example:
        """Return inputs and targets of a batch, on the network's device, without gradient."""

    @abc.abstractmethod
    def run(self, inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return what the student makes of its inputs."""

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``pixel`` and, with taps, ``feature`` for a batch of the data loader."""
        with torch.no_grad():
            example = self.example(batch)
        with FeatureTaps(inner_network(self.network), self.taps) as taps:
            result = self.run(example.inputs, batch)
            features = taps.take()
        losses = {"pixel": pixel_distance(self.pixel_loss, result, example.target, self.pixel_normalization)}
        if self.taps:
            pairs = zip(features, example.features, strict=True)
            distances = [self.feature_distance(mine, theirs) for mine, theirs in pairs]
            losses["feature"] = self.feature_weight * torch.stack(distances).sum()
        return losses


class DistillationStep(StudentStep):
    """The quantized network against its full-precision teacher, on the same low-resolution patches.

    Both run in eval mode; ground truth is not used.

    Source: 2DQuant section 3.3.

    Args:
        network: The quantized student.
        teacher: The full-precision network; not part of this module's parameters.
        taps: Names of modules whose outputs are matched, the same in both networks; none for the pixel term alone.
        pixel_loss: Called with the outputs of student and teacher.
        pixel_normalization: See :class:`StudentStep`.
        feature_weight: Factor of the feature term.
        feature_distance: Name in ``FEATURE_DISTANCES``.
        compiled: Whether to run both networks through ``torch.compile``.

    Raises:
        UserError: ``compiled`` with a network that is quantized by ``op:`` lines, which cannot be.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, taps: Sequence[str], pixel_loss: nn.Module,
                 pixel_normalization: str, feature_weight: float, feature_distance: str, compiled: bool) -> None:
        super().__init__(network, pixel_loss, pixel_normalization, taps, feature_weight, feature_distance)
        if compiled and isinstance(network, QuantizedModel):
            raise UserError("a network quantized by 'op:' lines cannot be compiled; set train:compile=false")
        self._teacher: Callable[[], nn.Module] = lambda: teacher
        self._compiled = compiled
        self._forwards: tuple[Network, Network] | None = None

    def example(self, batch: Batch) -> Example:
        """Return the images of a batch ``{lq: (B, 3, h, w), ...}`` and what the teacher makes of them."""
        parameter = next(self.network.parameters())
        images = batch["lq"].to(parameter.device, parameter.dtype, non_blocking=True)
        with FeatureTaps(self._teacher(), self.taps) as taps:
            target = self._pair()[0](images)
            return Example(images, target, taps.take())

    def run(self, inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the student's output."""
        return self._pair()[1](inputs)

    def _pair(self) -> tuple[Network, Network]:
        """Return what runs teacher and student."""
        if not self._compiled:
            return self._teacher(), self.network
        if self._forwards is None:
            self._forwards = (torch.compile(self._teacher()), torch.compile(self.network))
        return self._forwards
