"""A quantizer: two learnable bounds on a grid, and an explicit state."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from basicsr_quant.quant.grids.base import Grid
from basicsr_quant.quant.recipe import TensorRecipe
from basicsr_quant.registry import QUANTIZERS


class State(enum.Enum):
    """What a quantizer does with the tensors that pass."""

    OFF = "off"
    OBSERVE = "observe"
    QUANTIZE = "quantize"
    DYNAMIC = "dynamic"
    FOLLOW = "follow"


class Quantizer(nn.Module):
    """Round tensors to 2^bits values between two bounds, or watch them pass.

    The bounds are parameters ``lower_bound`` and ``upper_bound``, NaN until something sets them. In state ``observe``
    the tensor goes to ``watcher`` and passes unchanged; ``quantize`` rounds it; ``dynamic`` rounds it between its own
    extremes; ``follow`` shows it to ``watcher``, which may set the bounds, and then rounds it; ``off`` does nothing.

    Args:
        recipe: Bits, grid, granularity, observer.
        channels: Number of output channels, for ``per: channel``.
        dimensions: Number of dimensions of a per-channel tensor; the channel axis is the first.
    """

    def __init__(self, recipe: TensorRecipe, channels: int = 1, dimensions: int = 1) -> None:
        super().__init__()
        self.recipe = recipe
        self.grid: Grid = QUANTIZERS.build(recipe.grid.type, **recipe.grid.arguments)
        shape = (channels,) + (1,) * (dimensions - 1) if recipe.per == "channel" else (1,)
        self.lower_bound = nn.Parameter(torch.full(shape, torch.nan))
        self.upper_bound = nn.Parameter(torch.full(shape, torch.nan))
        self.state = State.QUANTIZE
        self.watcher: Callable[[torch.Tensor], None] | None = None
        self._followed: tuple[Quantizer, ...] = ()

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.recipe.bits

    @property
    def channel_axis(self) -> int | None:
        """0 for per-channel bounds, None for per-tensor."""
        return 0 if self.recipe.per == "channel" else None

    def follow(self, other: Quantizer) -> None:
        """Declare that this quantizer sees the same tensor as ``other`` and is calibrated to the same bounds."""
        self._followed = (other,)

    @property
    def followed(self) -> Quantizer | None:
        """The quantizer whose calibration this one takes over, or None."""
        return self._followed[0] if self._followed else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` rounded, or as it is, according to the state."""
        if self.state is State.QUANTIZE:
            return self.fake_quantize(x, self.lower_bound, self.upper_bound)
        if self.state is State.DYNAMIC:
            return self.fake_quantize(x, *extremes(x, self.channel_axis, self.lower_bound.shape))
        if self.state is not State.OFF and self.watcher is not None:
            self.watcher(x.detach())
        return self.fake_quantize(x, self.lower_bound, self.upper_bound) if self.state is State.FOLLOW else x

    def fake_quantize(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Return ``x`` rounded to the grid between the given bounds."""
        return self.grid.fake_quantize(x, lower, upper, self.bits)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the codes of ``x`` (uint8)."""
        return self.grid.encode(x, self.lower_bound, self.upper_bound, self.bits)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the values that codes stand for."""
        return self.grid.decode(codes, self.lower_bound, self.upper_bound, self.bits)

    @torch.no_grad()
    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return step and first value, in the shape of the bounds: code c stands for first + c * step."""
        levels = 2**self.bits - 1
        first, last = (self.decode(torch.full_like(self.lower_bound, code, dtype=torch.uint8)) for code in (0, levels))
        return (last - first) / levels, first

    def set_bits(self, bits: int) -> None:
        """Change the width of a code, as a checkpoint says."""
        self.recipe = replace(self.recipe, bits=bits)

    @torch.no_grad()
    def set_bounds(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Set both bounds; they may be of any shape with the right number of elements."""
        self.lower_bound.copy_(lower.reshape(self.lower_bound.shape))
        self.upper_bound.copy_(upper.reshape(self.upper_bound.shape))

    def describe(self) -> str:
        """Return a short text for tables: ``4b float_offset/tensor``."""
        return f"{self.bits}b {self.recipe.grid.type}/{self.recipe.per}"

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"{self.describe()}, {self.state.value}"


def extremes(x: torch.Tensor, axis: int | None, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Return minimum and maximum of a tensor, over everything but ``axis``, in the given shape."""
    if axis is None:
        low, high = torch.aminmax(x)
    else:
        flat = x.movedim(axis, 0).flatten(1)
        low, high = flat.amin(1), flat.amax(1)
    return low.reshape(shape), high.reshape(shape)
