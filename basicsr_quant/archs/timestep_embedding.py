"""What a denoising network knows of the timestep."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_quant.errors import UserError


def sinusoids(timesteps: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return sin(t f_i), then cos(t f_i), with f_i = 10000^(-i / (channels / 2)).

    Args:
        timesteps: (B,), integers or floats.
        channels: Even.
        dtype: Of the computation and of the result.

    Returns:
        (B, channels).

    Source: BI-DiffSR specification 1.1.
    """
    half = channels // 2
    steps = torch.arange(half, dtype=dtype, device=timesteps.device) / half
    angles = timesteps.to(dtype)[:, None] * torch.exp(-math.log(1e4) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Sinusoids, then Linear, Swish, Linear.

    The sinusoids are computed in float32, or in float64 for a network in float64, whatever the type of the timesteps.

    Args:
        channels: Of sinusoids and embedding; four times as many in between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = nn.Linear(channels, 4 * channels)
        self.output = nn.Linear(4 * channels, channels)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Map (B,) timesteps to (B, channels)."""
        dtype = self.hidden.weight.dtype
        encoded = sinusoids(timesteps, self.channels, torch.promote_types(dtype, torch.float32)).to(dtype)
        return self.output(functional.silu(self.hidden(encoded)))


def check_timesteps(timesteps: Iterable[int], total: int) -> None:
    """Check timesteps where they are made, on the host; the network itself does not look.

    Args:
        timesteps: Plain integers.
        total: ``total_step`` of the network.

    Raises:
        UserError: One is out of range.
    """
    for timestep in timesteps:
        if not 0 <= timestep < total:
            raise UserError(f"timestep {timestep} is out of range: the network's total_step is {total}, so timesteps "
                            f"go from 0 to {total - 1}; make beta_schedule:n_timestep and network_g:total_step equal")
