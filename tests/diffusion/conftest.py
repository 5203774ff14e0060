"""The recorded sampling, and small networks to run it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from basicsr_quant.archs.bi_diffsr_unet import BIDiffSRUNet
from basicsr_quant.archs.published.bi_diffsr import import_bi_diffsr

MakeNetwork = Callable[..., nn.Module]


@pytest.fixture(scope="session")
def recorded(fixtures: Path) -> dict[str, Tensor]:
    return load_file(fixtures / "bi_diffsr" / "ddim.safetensors")


@pytest.fixture
def released(fixtures: Path) -> nn.Module:
    """The small network with recorded weights, in float32."""
    path = fixtures / "bi_diffsr" / "small_unet_weights.safetensors"
    with safe_open(path, "pt") as file:
        network = BIDiffSRUNet(**json.loads(file.metadata()["config"]))
    network.load_state_dict(import_bi_diffsr(load_file(path)))
    return network.eval()


@pytest.fixture(scope="session")
def make_tiny() -> MakeNetwork:
    """Maker of a network of a few thousand weights: (**options)."""

    def make(**options: Any) -> nn.Module:
        torch.manual_seed(1)
        settings = {"inner_channel": 8, "norm_groups": 4, "channel_mults": [1, 2], "res_blocks": 1, "image_size": 16,
                    "fp_res": [16], "dropout": 0.2, "dynamic_group": 3}
        return BIDiffSRUNet(**{**settings, **options}).eval()

    return make
