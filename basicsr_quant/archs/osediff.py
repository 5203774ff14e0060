"""OSEDiff's networks: configurations of Stable Diffusion 2.1-base, the one-step formula, where shortcuts are joined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from basicsr_quant.archs.vae_start import CARRIED, COLOURS, start_as_resampling
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


def sd_unet(
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280), attention_levels: int = 3, layers_per_block: int = 2,
    attention_head_dim: Sequence[int] = (5, 10, 20, 20), cross_attention_dim: int = 1024, latent_channels: int = 4,
    norm_num_groups: int = 32,
) -> nn.Module:
    """Return a UNet of Stable Diffusion's structure with random weights; the defaults are those of 2.1-base.

    Args:
        block_out_channels: Channels of each resolution, the highest first.
        attention_levels: How many of the first levels have transformer blocks; the middle always has one.
        layers_per_block: Resnets of each level on the way down; one more on the way up.
        attention_head_dim: Heads (as diffusers names them) of each level.
        cross_attention_dim: Width of the prompt embedding.
        latent_channels: Channels of the latent.
        norm_num_groups: Groups of every GroupNorm.

    Raises:
        UserError: The levels do not fit together, or diffusers is not installed.
    """
    levels = len(block_out_channels)
    if len(attention_head_dim) != levels or not 0 <= attention_levels <= levels:
        raise UserError(f"network_unet: block_out_channels has {levels} levels, attention_head_dim "
                        f"{len(attention_head_dim)} and attention_levels is {attention_levels}; make them agree")
    attends = [level < attention_levels for level in range(levels)]
    return build_unet({
        **SD21_UNET, "in_channels": latent_channels, "out_channels": latent_channels,
        "down_block_types": tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
        "block_out_channels": tuple(block_out_channels), "layers_per_block": layers_per_block,
        "attention_head_dim": tuple(attention_head_dim), "cross_attention_dim": cross_attention_dim,
        "norm_num_groups": norm_num_groups,
    })


def sd_vae(
    block_out_channels: Sequence[int] = (128, 256, 512, 512), layers_per_block: int = 2, latent_channels: int = 4,
    norm_num_groups: int = 32, scaling_factor: float = LATENT_FACTOR, start: Literal["random", "resampling"] = "random",
) -> nn.Module:
    """Return a VAE of Stable Diffusion's structure with random weights; the defaults are those of 2.1-base.

    Args:
        block_out_channels: Channels of each resolution, the highest first; n levels shrink 2^(n-1) times.
        layers_per_block: Resnets of each level of the encoder; one more in the decoder.
        latent_channels: Channels of the latent.
        norm_num_groups: Groups of every GroupNorm.
        scaling_factor: Latent of the UNet over latent of the VAE.
        start: Initial weights: diffusers' own, or, for training from scratch in minutes, those of
            :func:`start_as_resampling`.

    Raises:
        UserError: Diffusers is not installed, or the network is too narrow for this start.
    """
    levels = len(block_out_channels)
    vae = build_vae({
        **SD21_VAE, "latent_channels": latent_channels, "block_out_channels": tuple(block_out_channels),
        "down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": layers_per_block, "norm_num_groups": norm_num_groups, "scaling_factor": scaling_factor,
    })
    if start == "resampling":
        if min(block_out_channels) < CARRIED * norm_num_groups or latent_channels < COLOURS:
            raise UserError(f"network_vae: start: resampling needs {CARRIED} channels in each of norm_num_groups "
                            f"groups and {COLOURS} latent channels; write start: random, or widen the network")
        if not vae.get_parameter("quant_conv.weight").is_meta:
            start_as_resampling(vae)
    return vae


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
    betas = torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float32, device="cpu") ** 2
    return torch.cumprod(1 - betas, dim=0)


def clean_latent(latent: Tensor, noise: Tensor, alpha_bar: float = ALPHA_BAR) -> Tensor:
    """Return x0 = (z - sqrt(1 - a) eps) / sqrt(a), computed in float64, in the dtype of ``latent``.

    Args:
        latent: z, (B, C, h, w), in the UNet's scale.
        noise: eps, the UNet's output, of the same shape.
        alpha_bar: a, of the timestep; by default of t = 999.

    Source: OSEDiff eq. 4 in its closed form; PassionSR specification 1.2.
    """
    difference = latent.double() - math.sqrt(1 - alpha_bar) * noise.double()
    return (difference / math.sqrt(alpha_bar)).to(latent.dtype)


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
