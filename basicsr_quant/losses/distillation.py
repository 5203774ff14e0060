"""Distances between a quantized network and its full-precision teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional


def pixel_distance(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], student: torch.Tensor,
                   teacher: torch.Tensor, normalization: str) -> torch.Tensor:
    """Return the distance of two outputs.

    Args:
        loss: Such as the mean absolute difference.
        student: (B, C, H, W).
        teacher: As ``student``.
        normalization: ``once``, or ``twice`` to divide by C*H*W once more, as the released code does.

    Source: 2DQuant eq. 5 (``once``); specification 4.2 (``twice``).
    """
    distance = loss(student, teacher)
    return distance if normalization == "once" else distance / teacher[0].numel()


def _sample_norms(feature: torch.Tensor) -> torch.Tensor:
    return feature.detach().flatten(1).norm(dim=1)


def batch_broadcast_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the released code's feature distance: every sample divided by the norm of every sample of the batch.

    mean over (a, b, ...) of (S[b]/|S[a]| - T[b]/|T[a]|)^2, divided by the number of averaged elements once more; the
    norms carry no gradient. With D = S - T, w[a] = 1/|S[a]| and d[a] = 1/|S[a]| - 1/|T[a]| the terms are
    (w[a] D + d[a] T)^2, whose sum over a needs the batch once and O(B) memory.

    Args:
        student: (B, ...).
        teacher: As ``student``.

    Source: 2DQuant specification 4.2.
    """
    batch = student.shape[0]
    student_weight, teacher_weight = 1 / _sample_norms(student), 1 / _sample_norms(teacher)
    slip = student_weight - teacher_weight
    difference = student - teacher
    total = (student_weight.square().sum() * difference.square().sum()
             + 2 * (student_weight * slip).sum() * (difference * teacher).sum()
             + slip.square().sum() * teacher.square().sum())
    return total / (batch * student.numel()) ** 2


def unit_norm_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the paper's feature distance: mean over the batch of |S/|S| - T/|T|| / elements.

    Args:
        student: (B, ...).
        teacher: As ``student``.

    Source: 2DQuant eq. 5.
    """
    student, teacher = student.flatten(1), teacher.flatten(1)
    difference = student / student.norm(dim=1, keepdim=True) - teacher / teacher.norm(dim=1, keepdim=True)
    return difference.norm(dim=1).mean() / student.shape[1]


def relative_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean over the batch of |S - T|^2 / |T|^2: of order the noise-to-signal ratio, whatever the size.

    Args:
        student: (B, ...).
        teacher: As ``student``.
    """
    difference = (student - teacher).flatten(1).square().sum(1)
    return (difference / teacher.flatten(1).square().sum(1)).mean()


def attention_transfer_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of attention maps: mean squares over channels, scaled to norm 1.

    Args:
        student: (B, C, H, W), or tokens (B, L, C).
        teacher: As ``student``.

    Source: Zagoruyko and Komodakis, "Paying more attention to attention" (ICLR 2017), as in PTQ4SR; 2DQuant
        specification 6.1.
    """
    channels = 1 if student.dim() == 4 else -1
    mine, theirs = (functional.normalize(feature.square().mean(channels).flatten(1)) for feature in (student, teacher))
    return functional.mse_loss(mine, theirs)


FEATURE_DISTANCES = {
    "batch_broadcast": batch_broadcast_distance,
    "unit_norm": unit_norm_distance,
    "relative": relative_distance,
    "attention_transfer": attention_transfer_distance,
}
