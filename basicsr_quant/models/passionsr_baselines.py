"""The methods that PassionSR is compared with, as arguments of the same plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from basicsr_quant.archs.published.passionsr import Component

Baseline = Literal["maxmin", "lsq", "q_diffusion", "efficientdm"]

_ERROR_SEARCH = {"type": "dobi", "search": "two_sided"}
PLAN_RULES: Mapping[Baseline, Mapping[str, Any]] = {
    "maxmin": {"weight_observer": "minmax", "activation_observer": "minmax"},
    "lsq": {"grid": "symmetric_step", "weight_observer": {"type": "step_size", "codes": "signed"},
            "activation_observer": "step_size"},
    "q_diffusion": {"split": "concat", "weight_observer": _ERROR_SEARCH, "activation_observer": _ERROR_SEARCH},
    "efficientdm": {"weight_observer": "minmax", "activation_observer": "minmax"},
}
"""Keyword arguments of :func:`basicsr_quant.models.passionsr_plan.default_plan`.

Source: PassionSR specification 6.1.
"""

BLOCKS: Mapping[Component, Sequence[str]] = {
    "unet": ("*.resnets.*", "*.transformer_blocks.*"),
    "vae": ("*.resnets.*", "*.attentions.*"),
}
"""What Q-Diffusion reconstructs as one block; every other layer is one by itself."""
