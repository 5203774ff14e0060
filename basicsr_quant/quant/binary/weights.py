"""Weights with two values: signs times a scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from basicsr_quant.quant.binary.sign import SignZero, learns, replace_gradient, sign
from basicsr_quant.quant.binary.slopes import Slope

Scale = Literal["none", "layer", "channel", "power_of_two"]


def _per_channel(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().mean(dim=tuple(range(1, weight.dim())), keepdim=True)


SCALES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "none": lambda weight: None,
    "layer": lambda weight: weight.abs().mean().view([1] * weight.dim()),
    "channel": _per_channel,
    "power_of_two": lambda weight: torch.exp2(torch.log2(_per_channel(weight)).round()),
}


class WeightBinarizer(nn.Module):
    """W -> sign W and a scale; the scale is a constant in the backward pass.

    Signs and scale stay apart, so that a convolution adds up nothing but -1, 0 and +1: sums are exact in any order, and
    one of zero is zero. (An RPReLU behind it has a kink there, and rounding errors would decide on which side it is.)

    Args:
        slope: Surrogate of d (scale * sign W) / d W.
        scale: ``none`` (1), ``layer`` (mean of abs W), ``channel`` (that per output channel), ``power_of_two`` (that,
            rounded to a power of two).
        sign_zero: See :func:`basicsr_quant.quant.binary.sign.sign`.
        standardize: Whether W is first moved to mean 0 and scaled to standard deviation 1 per output channel, which
            the gradient flows through.
        latent_bound: Largest magnitude that :func:`clamp_latent_weights` leaves a latent weight; None for any.

    Source: BI-DiffSR specification 2.2 and 6.3.
    """

    def __init__(self, slope: Slope, scale: Scale = "channel", sign_zero: SignZero = "zero", standardize: bool = False,
                 latent_bound: float | None = None) -> None:
        super().__init__()
        self.slope, self.scale, self.sign_zero = slope, scale, sign_zero
        self.standardize, self.latent_bound = standardize, latent_bound

    def _latent(self, weight: torch.Tensor) -> torch.Tensor:
        if not self.standardize:
            return weight
        axes = tuple(range(1, weight.dim()))
        centred = weight - weight.mean(dim=axes, keepdim=True)
        return centred / centred.std(dim=axes, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)

    def forward(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the parts of the binary weight.

        The gradient that arrives at the signs has been multiplied by the scale on its way; that is undone here.

        Args:
            weight: (O, ...), latent.

        Returns:
            Signs (O, ...), all 0 where the scale would be 0; and the scale, (O, 1, ...) or one for the layer
            (1, 1, ...), 1 in the place of 0; None if there is none.
        """
        latent = self._latent(weight)
        constant = latent.detach()
        signs, scale = sign(constant, self.sign_zero), SCALES[self.scale](constant)
        true_scale = scale
        if scale is not None:
            signs = signs * (scale != 0)
            scale = torch.where(scale == 0, 1.0, scale)
        if learns(latent):
            slope = self.slope(latent, true_scale)
            signs = replace_gradient(latent, signs, slope if scale is None else slope / scale)
        return signs, scale
