"""OSEDiff's networks: configurations of Stable Diffusion 2.1-base, the one-step formula, where shortcuts are joined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError

LATENT_FACTOR = 0.18215
TIMESTEP = 999
ALPHA_BAR = 0.00466009508818388
CONTEXT_SHAPE = (77, 1024)

SD21_UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
}
SD21_VAE: Mapping[str, Any] = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "scaling_factor": LATENT_FACTOR,
}


def build_unet(config: Mapping[str, Any] = SD21_UNET) -> nn.Module:
    """Return diffusers' ``UNet2DConditionModel`` with random weights.

    Raises:
        UserError: diffusers is not installed.
    """
    return _diffusers_class("UNet2DConditionModel")(**config)


def build_vae(config: Mapping[str, Any] = SD21_VAE) -> nn.Module:
    """Return diffusers' ``AutoencoderKL`` with random weights.

    Raises:
        UserError: diffusers is not installed.
    """
    return _diffusers_class("AutoencoderKL")(**config)


def _diffusers_class(name: str) -> Any:
    load_torchvision()
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise UserError("the package 'diffusers' is not installed; install it with "
                        "`pip install -c constraints.txt diffusers`") from error
    return getattr(diffusers, name)


def noise_schedule(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Return the cumulative products of 1 - beta, (steps,) float32; beta is the square of an even row of numbers.

    Source: OSEDiff; PassionSR specification 1.1.
    """
    betas = torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, dim=0)


def clean_latent(latent: Tensor, noise: Tensor) -> Tensor:
    """Return x0 = (z - sqrt(1 - a) eps) / sqrt(a) at t = 999, computed in float64, in the dtype of ``latent``.

    Args:
        latent: z, (B, 4, h, w), scaled by 0.18215.
        noise: eps, the UNet's output, of the same shape.

    Source: OSEDiff eq. 4 in its closed form; PassionSR specification 1.2.
    """
    difference = latent.double() - math.sqrt(1 - ALPHA_BAR) * noise.double()
    return (difference / math.sqrt(ALPHA_BAR)).to(latent.dtype)


def concat_splits(unet: Any) -> dict[str, int]:
    """Return, for each layer that reads joined tensors (features, shortcut), the channel where the shortcut begins.

    These are ``conv1`` and ``conv_shortcut`` of all resnets in the up blocks.

    Args:
        unet: diffusers' ``UNet2DConditionModel``, of any size, quantized or not.
    """
    splits = {}
    features = unet.mid_block.resnets[-1].conv2.weight.shape[0]
    for number, block in enumerate(unet.up_blocks):
        for position, resnet in enumerate(block.resnets):
            name = f"up_blocks.{number}.resnets.{position}"
            splits[f"{name}.conv1"] = features
            if resnet.conv_shortcut is not None:
                splits[f"{name}.conv_shortcut"] = features
            features = resnet.conv2.weight.shape[0]
    return splits
