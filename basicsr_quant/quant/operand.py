"""A named place for a tensor that is no module's input: q, k, v, a softmax map."""

from __future__ import annotations

from torch import nn


class Operand(nn.Identity):
    """Pass a tensor through under a module name, so that a plan can put a quantizer there."""
