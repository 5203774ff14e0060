"""One training iteration of 2DQuant as its released code does it, for comparison only.

Written from the specification (4.1, 4.2 and the performance list of section 9): the bounds are read back to the host
in every quantizer, the quantizer is a chain of autograd operations whose input gradient is multiplied by the step and
divided by it again, weights collect gradients that nothing uses, the feature loss holds (B, B, L, C) numbers, hooks
stay registered, anomaly detection is on. Network and teacher are ours, so what they gained over the released ones is
not counted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from basicsr_quant.quant.quantizer import Quantizer

FEATURE_WEIGHT = 5.0
LEARNING_RATE, BETAS = 1e-2, (0.9, 0.99)


class _Clip(torch.autograd.Function):
    """Clip with gradients for both bounds; an element equal to a bound counts for the bound and the input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, lower, upper)
        return torch.clip(x, lower.item(), upper.item())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        (gradient,), (x, lower, upper) = gradients, ctx.saved_tensors
        inside = gradient * ((x >= lower) & (x <= upper))
        to_lower = (gradient * (x <= lower)).sum().reshape(1)
        to_upper = (gradient * (x >= upper)).sum().reshape(1)
        return inside, to_lower, to_upper


class _Round(torch.autograd.Function):
    """Round half to even, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class ReleasedQuantizer(nn.Module):
    """The fake quantizer as a chain of operations.

    Source: 2DQuant specification 2.1, 2.2, 9.22.

    Args:
        quantizer: Whose bounds and bits to take.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.lower_bound = nn.Parameter(quantizer.lower_bound.detach().clone())
        self.upper_bound = nn.Parameter(quantizer.upper_bound.detach().clone())
        self.n_bit = nn.Parameter(torch.full_like(self.lower_bound, float(quantizer.bits)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round a tensor of any shape."""
        levels = 2 ** _Round.apply(self.n_bit) - 1
        step = (self.upper_bound - self.lower_bound) / levels
        clipped = _Clip.apply(x, self.lower_bound, self.upper_bound)
        codes = _Round.apply((clipped - self.lower_bound) / step)
        rounded: torch.Tensor = step * codes + self.lower_bound
        return rounded


def with_released_quantizers(network: nn.Module) -> nn.Module:
    """Return a copy of a calibrated network in which every quantizer is a :class:`ReleasedQuantizer`."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Quantizer):
                setattr(parent, name, ReleasedQuantizer(child))
    return network


class ReleasedStep:
    """Student, teacher, losses and optimizer of the released distillation.

    Args:
        student: Calibrated network with our quantizers; it is copied.
        teacher: Full-precision network.
        taps: Names of the modules whose outputs are matched.
        anomaly_detection: Whether autograd records where each operation came from, as the released loop has it.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, taps: Sequence[str], anomaly_detection: bool) -> None:
        self.student, self.teacher = with_released_quantizers(student).requires_grad_(True), teacher
        self.anomaly_detection = anomaly_detection
        self.bounds = [bound for module in self.student.modules() if isinstance(module, ReleasedQuantizer)
                       for bound in (module.lower_bound, module.upper_bound)]
        self.optimizer = torch.optim.Adam(self.bounds, lr=LEARNING_RATE, betas=BETAS)
        self._features: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
        for side, network in (("student", self.student), ("teacher", self.teacher)):
            for tap in taps:
                network.get_submodule(tap).register_forward_hook(self._keeper(side))

    def _keeper(self, side: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._features[side].append(output)

        return keep

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``pixel`` and ``feature`` for (B, 3, h, w)."""
        for features in self._features.values():
            features.clear()
        with torch.no_grad():
            wanted = self.teacher(images)
        restored = self.student(images)
        pixel = nn.functional.l1_loss(restored, wanted) * len(images) / restored.numel()
        pairs = zip(self._features["student"], self._features["teacher"], strict=True)
        feature = torch.stack([feature_loss(student, teacher) for student, teacher in pairs]).sum()
        return {"pixel": pixel, "feature": feature}

    def iterate(self, images: torch.Tensor) -> None:
        """Do one iteration; weights add up their gradients, since the optimizer does not know them."""
        with torch.autograd.set_detect_anomaly(self.anomaly_detection):
            self.optimizer.zero_grad()
            torch.stack(list(self.losses(images).values())).sum().backward()
            self.optimizer.step()


def feature_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the weighted distance of two features (B, L, C), whose norms are broadcast over the batch.

    Source: 2DQuant specification 4.2.
    """
    scaled = [feature / torch.norm(feature.detach().flatten(1), dim=1).reshape(-1, 1, 1, 1)
              for feature in (student, teacher)]
    return FEATURE_WEIGHT * nn.functional.mse_loss(*scaled) / scaled[0].numel()
