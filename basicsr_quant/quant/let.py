"""Learnable equivalent transformation (LET): range moved from a layer's input to its weight, its output unchanged.

Source: PassionSR, section "learnable equivalent transformation"; specification 4.4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from basicsr_quant.quant.recipe_parts import Let


class Scale(nn.Module):
    """A learnable factor per channel (or token), 1 until something sets it.

    ``watcher``, if set, gets the two maxima that the factor shall balance, at each forward of the owner.

    Args:
        size: Number of channels.
        alpha: Exponent of the initial value.
    """

    def __init__(self, size: int, alpha: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(size))
        self.alpha = alpha
        self.watcher: Callable[[torch.Tensor, torch.Tensor], None] | None = None


class Transformation(nn.Module):
    """x -> (x - o) / s and W -> W s, s and o per input channel, with W o to be added to the layer's output.

    Args:
        channels: Number of input channels.
        recipe: Options.
        groups: Of a convolution.
    """

    def __init__(self, channels: int, recipe: Let, groups: int = 1) -> None:
        super().__init__()
        self.recipe, self.groups = recipe, groups
        self.scale = Scale(channels, recipe.alpha)
        self.offset = nn.Parameter(torch.zeros(channels))
        self.input_is_transformed = False

    def forward(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """Return the transformed input, channels on the given axis of ``x``."""
        if self.input_is_transformed:
            return x
        shape = [1] * x.dim()
        shape[axis] = -1
        offset = self.offset.view(shape)
        return (x + offset if self.recipe.offset_sign == "plus" else x - offset) / self.scale.value.view(shape)

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return W s of a weight (O, I / groups, ...)."""
        return weight * self._per_weight(self.scale.value, weight)

    def border(self, weight: torch.Tensor) -> torch.Tensor:
        """Return W o, summed over the input channels of each output channel: (O, 1, ...)."""
        return (weight * self._per_weight(self.offset, weight)).sum(1, keepdim=True)

    def _per_weight(self, channels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows = channels.view(self.groups, -1)
        if self.groups > 1:
            rows = rows.repeat_interleave(weight.shape[0] // self.groups, 0)
        return rows.view(*rows.shape, *[1] * (weight.dim() - 2))

    @torch.no_grad()
    def show(self, x: torch.Tensor, axis: int, weight: torch.Tensor) -> None:
        """Give the scale's watcher, if it has one, the largest absolute values of input and weight per channel."""
        if self.scale.watcher is None:
            return
        joint = x.dim() == 2 and self.recipe.vector_maximum == "tensor"
        columns = weight.abs().reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        found = x.abs().amax().expand(x.shape[axis]) if joint else largest(x, axis)
        self.scale.watcher(found, columns.amax((1, 3)).flatten())


def largest(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the largest absolute value per index of one axis, without gradient."""
    return x.detach().abs().movedim(axis, 0).flatten(1).amax(1)
