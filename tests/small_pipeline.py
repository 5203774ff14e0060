"""A UNet and a VAE of OSEDiff's structure that train in seconds, and a workshop with their weights."""

from __future__ import annotations

import pytest
import torch
from workshop import Workshop

from basicsr_quant.archs.build import build_network

UNET = {"type": "SDUNet", "block_out_channels": [8, 16], "attention_levels": 1, "layers_per_block": 1,
        "attention_head_dim": [1, 2], "cross_attention_dim": 8, "latent_channels": 4, "norm_num_groups": 4}
VAE = {"type": "SDVAE", "block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4,
       "norm_num_groups": 4, "scaling_factor": 1.0}
FP = {"pretrain_network_unet": "weights/unet.pth", "pretrain_network_vae": "weights/vae.pth"}


@pytest.fixture
def place(workshop: Workshop) -> Workshop:
    """A workshop whose folder ``weights`` holds both networks."""
    for part, block in (("unet", UNET), ("vae", VAE)):
        torch.manual_seed(3)
        network = build_network(block["type"], {key: item for key, item in block.items() if key != "type"})
        torch.save({"params": network.state_dict()}, workshop.folder / "weights" / f"{part}.pth")
    return workshop
