"""The distillation step of post-training quantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.losses.distillation import FEATURE_DISTANCES, pixel_distance
from basicsr_quant.models.base import Batch
from basicsr_quant.quant.foreign import QuantizedModel, inner_network
from basicsr_quant.quant.taps import FeatureTaps

Network = Callable[[torch.Tensor], torch.Tensor]


class DistillationStep(nn.Module):
    """The quantized network against its full-precision teacher, on the same low-resolution patches.

    Both run in eval mode; ground truth is not used. Only what requires a gradient learns.

    Source: 2DQuant section 3.3.

    Args:
        network: The quantized student.
        teacher: The full-precision network; not part of this module's parameters.
        taps: Names of modules whose outputs are matched, the same in both networks; none for the pixel term alone.
        pixel_loss: Called with the outputs of student and teacher.
        pixel_normalization: See :func:`basicsr_quant.losses.distillation.pixel_distance`.
        feature_weight: Factor of the feature term.
        feature_distance: Name in ``FEATURE_DISTANCES``.
        compiled: Whether to run both networks through ``torch.compile``.

    Raises:
        UserError: ``compiled`` with a network that is quantized by ``op:`` lines, which cannot be.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, taps: Sequence[str], pixel_loss: nn.Module,
                 pixel_normalization: str, feature_weight: float, feature_distance: str, compiled: bool) -> None:
        super().__init__()
        if compiled and isinstance(network, QuantizedModel):
            raise UserError("a network quantized by 'op:' lines cannot be compiled; set train:compile=false")
        self.network = network
        self.taps = tuple(taps)
        self.pixel_loss, self.pixel_normalization = pixel_loss, pixel_normalization
        self.feature_weight, self.feature_distance = feature_weight, FEATURE_DISTANCES[feature_distance]
        self._teacher: Callable[[], nn.Module] = lambda: teacher
        self._compiled = compiled
        self._forwards: tuple[Network, Network] | None = None

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``pixel`` and, with taps, ``feature`` for a batch ``{lq: (B, 3, h, w), ...}``."""
        parameter = next(self.network.parameters())
        images = batch["lq"].to(parameter.device, parameter.dtype, non_blocking=True)
        teacher = self._teacher()
        run_teacher: Network = teacher
        run_student: Network = self.network
        if self._compiled:
            run_teacher, run_student = self._compile(teacher)
        student = inner_network(self.network)
        with FeatureTaps(teacher, self.taps) as teacher_taps, FeatureTaps(student, self.taps) as student_taps:
            with torch.no_grad():
                wanted = run_teacher(images)
            restored = run_student(images)
            wanted_features, features = teacher_taps.take(), student_taps.take()
        losses = {"pixel": pixel_distance(self.pixel_loss, restored, wanted, self.pixel_normalization)}
        if self.taps:
            pairs = zip(features, wanted_features, strict=True)
            distances = [self.feature_distance(mine, theirs) for mine, theirs in pairs]
            losses["feature"] = self.feature_weight * torch.stack(distances).sum()
        return losses

    def _compile(self, teacher: nn.Module) -> tuple[Network, Network]:
        if self._forwards is None:
            self._forwards = (torch.compile(teacher), torch.compile(self.network))
        return self._forwards
