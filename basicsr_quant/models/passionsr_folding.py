"""Where in OSEDiff's networks an equivalent transformation can move into the norm before it."""

from __future__ import annotations

from typing import Any

from torch import nn

from basicsr_quant.quant.folding import fold_into_norm
from basicsr_quant.quant.layers.weighted import QuantWeighted


def fold_norms(network: nn.Module) -> int:
    """Fold the transformations of all layers that alone read an affine norm: ``proj_in`` and the first of ``ff``.

    All other transformed layers stand behind an activation, share their norm, or read no norm.

    Args:
        network: Prepared UNet, scales and offsets final; a network without such layers stays as it is.

    Returns:
        Number of layers that were folded.

    Source: PassionSR specification 4.5.
    """
    pairs = [pair for module in network.modules() for pair in _pairs(module)]
    for norm, layer in pairs:
        fold_into_norm(norm, [layer])
    return len(pairs)


def _pairs(module: Any) -> list[tuple[nn.GroupNorm | nn.LayerNorm, QuantWeighted]]:
    """Return the norms of a transformer or of one of its blocks, with the one layer that reads each."""
    norm, layer = getattr(module, "norm", None), getattr(module, "proj_in", None)
    if not hasattr(module, "transformer_blocks"):
        norm, feed_forward = getattr(module, "norm3", None), getattr(module, "ff", None)
        layer = feed_forward.net[0].proj if feed_forward is not None else None
    if not isinstance(norm, (nn.GroupNorm, nn.LayerNorm)) or not isinstance(layer, QuantWeighted) or layer.let is None:
        return []
    return [(norm, layer)]
