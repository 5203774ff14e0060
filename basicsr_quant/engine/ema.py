"""Exponential moving average of a network's parameters."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A copy of a network that follows it.

    Args:
        network: The network in training.
        decay: In (0, 1); after each step average = decay * average + (1 - decay) * parameter. Buffers are copied.
        label: Of the network in checkpoint files.
    """

    def __init__(self, network: nn.Module, decay: float, label: str) -> None:
        self.decay = decay
        self.label = label
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._source = network

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one step towards the network."""
        averages: list[torch.Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averages, list(self._source.parameters()), 1 - self.decay)
        for own, other in zip(self.network.buffers(), self._source.buffers(), strict=True):
            own.copy_(other)
