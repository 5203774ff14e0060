"""OSEDiff's networks at reduced width, with the structure and the names of the full ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from basicsr_quant.archs.osediff import SD21_UNET, SD21_VAE, TIMESTEP, build_unet, build_vae, concat_splits
from basicsr_quant.models.passionsr_plan import default_plan, key_tokens_of
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

LATENT = (16, 16)
NARROW_UNET = {**SD21_UNET, "block_out_channels": (16, 32, 48, 48), "attention_head_dim": (2, 4, 6, 6),
               "norm_num_groups": 8, "cross_attention_dim": 24}
NARROW_VAE = {**SD21_VAE, "block_out_channels": (8, 16, 24, 24), "norm_num_groups": 4}
FIRST_BATCH = {"type": "ema_minmax", "momentum": 1}
RELEASED: dict[str, Any] = {
    "let": {"offset_sign": "plus", "vector_maximum": "tensor"}, "smooth": {}, "zero_point_gradient": "detached",
    "weight_observer": FIRST_BATCH, "activation_observer": FIRST_BATCH,
    "product_observer": {"type": "ema_minmax", "momentum": 0.95},
}
CORRECTED: dict[str, Any] = {"let": {}, "smooth": {}}


def narrow(component: str, seed: int = 0) -> nn.Module:
    pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    network = build_unet(NARROW_UNET) if component == "unet" else build_vae(NARROW_VAE)
    return network.eval().requires_grad_(False)


def full_on_meta(component: str) -> nn.Module:
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        return build_unet() if component == "unet" else build_vae()


def prepared(component: str, network: nn.Module, latent: tuple[int, int] | None = LATENT, **rules: Any) -> nn.Module:
    splits = None
    if component == "unet":
        splits = concat_splits(network)
        if latent is not None:
            rules["key_tokens"] = key_tokens_of(network, latent, 7 if latent == LATENT else 77)
    return prepare(network, QuantPlan.parse(default_plan(component, network, **rules)), concat_splits=splits)


def run(component: str, network: Any, x: torch.Tensor) -> torch.Tensor:
    """Map a latent (B, 4, h, w) to noise, or an image (B, 3, H, W) through the autoencoder to an image."""
    if component == "vae":
        return network.decode(network.encode(x).latent_dist.mode()).sample
    generator = torch.Generator().manual_seed(5)
    width = network.config.cross_attention_dim
    context = torch.randn(1, 7, width, generator=generator).expand(len(x), -1, -1)
    return network(x, TIMESTEP, context).sample


def example(component: str, seed: int = 1, batch: int = 2) -> torch.Tensor:
    shape = (batch, 4, *LATENT) if component == "unet" else (batch, 3, 32, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
