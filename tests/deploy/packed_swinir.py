"""A tiny packed model for tests, made without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from workshop import NETWORK

from basicsr_quant.deploy.pack import pack
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.registry import MODELS


def tiny_model(folder: Path, bit: int = 4, **options: Any) -> RestorationModel:
    """A calibrated SwinIR, as ``TDQuantModel``, or as ``SRModel`` with random weights for ``bit`` 0."""
    values: dict[str, Any] = {"name": "tiny", "mode": "corrected", "scale": 2, "num_gpu": 0,
                              "datasets": {"test_1": {"name": "any", "dataroot_lq": "."}}}
    values |= ({"model_type": "TDQuantModel", "bit": bit, "network_Q": NETWORK} if bit else
               {"model_type": "SRModel", "network_g": NETWORK}) | options
    path = folder / "tiny.yml"
    path.write_text(yaml.safe_dump(values))
    loaded = load_options(path, is_train=False)
    torch.manual_seed(0)
    model: RestorationModel = MODELS.build(loaded.model_type, loaded, torch.device("cpu"))
    network = type(model).skeleton(loaded).eval()
    if bit:
        calibrate(network, [torch.rand(2, 3, 8, 8)], allow_degenerate=True)
    model.adopt(network.requires_grad_(False))
    return model


def tiny_packed(folder: Path, bit: int = 4) -> bytes:
    """The bytes of :func:`tiny_model`, packed."""
    return pack(tiny_model(folder, bit))[0]
