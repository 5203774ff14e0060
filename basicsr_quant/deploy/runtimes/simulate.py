"""``simulate``: values are rounded to the low-bit grid, products run in floating point; weights are decoded once."""

from __future__ import annotations

import logging

from torch import nn

from basicsr_quant.deploy.freeze import frozen_layers

logger = logging.getLogger("basicsr_quant")


class Simulate:
    """Frozen layers as they are: bit-identical to the model that was packed, nothing of its training left."""

    def missing(self) -> None:
        """Return None: it runs everywhere."""
        return

    def attach(self, network: nn.Module) -> nn.Module:
        """Return the network, and say what is not real."""
        if any(True for _ in frozen_layers(network)):
            logger.info("execution is simulated: codes are decoded to the low-bit grid, products run in floating point")
        return network
