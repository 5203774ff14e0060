"""Parametrizations of a layer's weight: what is learned in place of the weight while it is being quantized."""

from __future__ import annotations

import torch
from torch import nn

from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.split_quantizer import SplitQuantizer


class WeightParametrization(nn.Module):
    """Changes a weight before it is rounded, or the rounding itself; this one does neither.

    It is a quantized layer's ``parametrization`` until ``merge_weights`` makes what it does a part of the weight.
    """

    def weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return what takes the place of the layer's weight, before any equivalent transformation."""
        return weight

    def round(self, weight: torch.Tensor, quantizer: Quantizer | SplitQuantizer) -> torch.Tensor:
        """Return the rounded weight.

        Args:
            weight: Changed by :meth:`weight`, then transformed.
            quantizer: Of the layer's weight.
        """
        rounded: torch.Tensor = quantizer(weight)
        return rounded

    def merged(self, weight: torch.Tensor, factor: torch.Tensor | float,
               quantizer: Quantizer | SplitQuantizer | None) -> torch.Tensor:
        """Return the weight with which the layer does the same once the parametrization is gone.

        Args:
            weight: The layer's weight.
            factor: What the layer's equivalent transformation multiplies it by.
            quantizer: Of the layer's weight.
        """
        return self.weight(weight)
