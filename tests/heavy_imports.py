"""What takes long to import, for a process that others are forked from."""

from __future__ import annotations

import contextlib

import basicsr_quant.engine.train
import basicsr_quant.models.base
from basicsr_quant.compat import load_torchvision

load_torchvision()
with contextlib.suppress(ImportError):
    import diffusers
    import peft

    NETWORKS = (diffusers.AutoencoderKL, diffusers.UNet2DConditionModel, diffusers.DDIMScheduler, peft.LoraConfig)

__all__ = ["basicsr_quant"]
