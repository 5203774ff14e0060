"""A quantizer for each of the two parts of a tensor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import TensorRecipe
from basicsr_quant.quant.recipe_parts import SplitIn


class SplitQuantizer(nn.Module):
    """Two quantizers for the two parts of a tensor along one axis.

    Args:
        recipe: Of each part.
        axis: Axis that is cut.
        at: Where the second part begins; None for the middle, rounded down.
        channels: As in ``Quantizer``.
        dimensions: As in ``Quantizer``.
    """

    def __init__(self, recipe: TensorRecipe, axis: int, at: int | None, channels: int = 1, dimensions: int = 1) -> None:
        super().__init__()
        self.axis, self.at = axis, at
        self.parts = nn.ModuleList(Quantizer(recipe, channels, dimensions) for _ in range(2))

    def quantizers(self) -> list[Quantizer]:
        """Return the quantizers of both parts."""
        return [part for part in self.parts if isinstance(part, Quantizer)]

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.quantizers()[0].bits

    def cut(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two parts of ``x``."""
        size = x.shape[self.axis]
        first = size // 2 if self.at is None else self.at
        return x.narrow(self.axis, 0, first), x.narrow(self.axis, first, size - first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` with each part as its quantizer leaves it."""
        return torch.cat([part(piece) for part, piece in zip(self.parts, self.cut(x), strict=True)], self.axis)

    def describe(self) -> str:
        """Return a short text for tables: ``2 x 4b float_offset/tensor``."""
        return f"2 x {self.quantizers()[0].describe()}"


def make_quantizer(recipe: TensorRecipe | None, split: SplitIn | None = None, axis: int = 1, channels: int = 1,
                   dimensions: int = 1) -> Quantizer | SplitQuantizer | None:
    """Return what rounds a tensor by a recipe, in one piece or two; None for None.

    Args:
        recipe: Of the tensor.
        split: Where to cut; its ``at`` is ``half`` or a number.
        axis: Axis that is cut.
        channels: As in ``Quantizer``.
        dimensions: As in ``Quantizer``.
    """
    if recipe is None:
        return None
    if split is None:
        return Quantizer(recipe, channels, dimensions)
    return SplitQuantizer(recipe, axis, split.at if isinstance(split.at, int) else None, channels, dimensions)


def pieces(name: str, quantizer: Quantizer | SplitQuantizer,
           tensor: torch.Tensor) -> Iterator[tuple[str, Quantizer, torch.Tensor]]:
    """Yield name, quantizer and what it rounds of a tensor, for each part."""
    if isinstance(quantizer, Quantizer):
        yield name, quantizer, tensor
        return
    for number, (part, piece) in enumerate(zip(quantizer.quantizers(), quantizer.cut(tensor), strict=True)):
        yield f"{name}.parts.{number}", part, piece
