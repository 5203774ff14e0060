"""basicsr_quant: super-resolution at low bit-widths: train, quantize, evaluate."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {"from_pretrained": "basicsr_quant.deploy.hub", "save_pretrained": "basicsr_quant.deploy.hub"}


def __getattr__(name: str) -> Any:
    """Import what is asked for on first use, so that ``import basicsr_quant`` stays light."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
