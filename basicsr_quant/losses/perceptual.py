"""Losses on deep features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from basicsr_quant.metrics.networks import build_lpips


class LPIPSLoss(nn.Module):
    """LPIPS v0.1 as a training loss, averaged over the batch.

    Args:
        loss_weight: Factor on the result.
        net: Backbone.
        weights: The backbone's file or a folder that holds it; None = the torch hub cache.
        pnet_rand: A random backbone with fixed seed, for tests; needs no file.

    Raises:
        UserError: The package or the file is missing; the message names the file and where to put it.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018.
    """

    def __init__(self, loss_weight: float = 1.0, net: Literal["alex", "vgg", "squeeze"] = "vgg",
                 weights: str | None = None, pnet_rand: bool = False) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.network = build_lpips(net, weights, pnet_rand, "cpu")

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of two batches (B, 3, H, W) in [0, 1]."""
        distance: torch.Tensor = self.network(prediction, target, normalize=True)
        return self.loss_weight * distance.mean()
