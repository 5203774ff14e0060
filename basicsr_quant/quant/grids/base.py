"""What a grid is."""

from __future__ import annotations

from typing import Protocol

import torch


class Grid(Protocol):
    """Which values the codes 0 .. 2^bits - 1 stand for between two bounds; bounds broadcast against the tensor."""

    def fake_quantize(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return ``x`` rounded to the grid, in its own dtype, differentiable in ``x`` and both bounds."""
        ...

    def encode(self, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the codes of ``x`` as uint8."""
        ...

    def decode(self, codes: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> torch.Tensor:
        """Return the values that codes stand for, in float32 or float64."""
        ...

    def affine(self, lower: torch.Tensor, upper: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return step and first value in float64: code c stands for first + c * step, but for one rounding."""
        ...


def working_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32, or float64 if it is that; quantization is never done in 16 bits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
