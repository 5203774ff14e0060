"""Low-rank training of OSEDiff's networks by peft: which layers, adding the factors, taking them out again.

Source: PassionSR specification 1.4.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from basicsr_quant import randomness
from basicsr_quant.archs.published.osediff import ADAPTERS, LORA_ALPHA, State, merge_lora
from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import apply_state_dict

_ENCODER, _DECODER, _OTHERS = ADAPTERS
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_UNET_ENDS = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv_in", "conv_out", "conv1", "conv2",
              "conv_shortcut", "conv")
_VAE_ENDS = (*_ATTENTION, "conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "conv")


def unet_layers(unet: nn.Module) -> dict[str, list[str]]:
    """Return adapter -> layers of a UNet that get low-rank factors: all but those of the time embedding."""
    groups: dict[str, list[str]] = {adapter: [] for adapter in ADAPTERS}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and _ends(name, _UNET_ENDS):
            top = name.partition(".")[0]
            adapter = _ENCODER if top in ("conv_in", "down_blocks") else _OTHERS if top == "mid_block" else _DECODER
            groups[adapter].append(name)
    return groups


def vae_layers(vae: nn.Module) -> dict[str, list[str]]:
    """Return adapter -> layers of a VAE that get low-rank factors: the encoder's and ``quant_conv``."""
    names = [name for name, module in vae.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
             and (name == "quant_conv" or (name.startswith("encoder.") and _ends(name, _VAE_ENDS)))]
    return {_ENCODER: names}


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def add_lora(network: nn.Module, layers: Mapping[str, list[str]], rank: int, alpha: float, seed: int,
             stream: str) -> list[nn.Parameter]:
    """Put low-rank factors into a network, in place, freeze all else and return the factors.

    A is drawn from N(0, 1/rank^2) as a function of the seed and the layer's name; B is zero, so that the network still
    computes the same.

    Args:
        network: diffusers' UNet or VAE.
        layers: Adapter -> names of layers, see :func:`unet_layers` and :func:`vae_layers`.
        rank: r.
        alpha: The product B A is multiplied by alpha / r.
        seed: ``manual_seed``.
        stream: Keeps the draws of two networks apart.

    Raises:
        UserError: peft is not installed.
    """
    load_torchvision()
    try:
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ModuleNotFoundError as error:
        raise UserError("LoRA training needs the package 'peft'; install it with "
                        "`pip install -c constraints.txt peft`") from error
    network.requires_grad_(False)
    for adapter, names in layers.items():
        settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names,  # type: ignore[arg-type]
                                   init_lora_weights="gaussian")
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            peft.inject_adapter_in_model(settings, network, adapter_name=adapter)
    factors = []
    for name, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            tuner: Any = module
            tuner.set_adapter(list(tuner.lora_A))
            for adapter, down in tuner.lora_A.items():
                shape = tuple(down.weight.shape)
                drawn = randomness.normal(seed, f"lora {stream} {name} {adapter}", 0, [0], shape)[0] / rank
                with torch.no_grad():
                    down.weight.copy_(drawn)
                factors += [down.weight, tuner.lora_B[adapter].weight]
    for factor in factors:
        factor.requires_grad_(True)
    return factors


def has_lora(network: nn.Module) -> bool:
    """Return whether a network has low-rank factors."""
    return any("lora_" in name for name, _ in network.named_parameters())


def trained_state(network: nn.Module, conv_in: bool) -> State:
    """Return what OSEDiff's training changes, under published names: the factors and, of a UNet, ``conv_in``."""
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()
            if "lora_" in name or (conv_in and name.startswith("conv_in."))}


def load_trained_state(network: nn.Module, state: Mapping[str, torch.Tensor], conv_in: bool, where: str) -> None:
    """Put back what :func:`trained_state` returned.

    Raises:
        UserError: The layers or ranks are others.
    """
    expected, found = trained_state(network, conv_in).keys(), state.keys()
    if expected != found:
        name = sorted(expected ^ found)[0]
        raise UserError(f"'{where}' does not fit these options: '{name}' is "
                        f"{'missing' if name in expected else 'unknown'}; check the network and lora options")
    apply_state_dict(network, state, where, strict=False)


def merged_state(network: nn.Module, alpha: float = LORA_ALPHA) -> State:
    """Return a network's weights under plain diffusers names on the CPU, low-rank factors merged if it has any."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    factors = {name: tensor for name, tensor in state.items() if "lora_" in name}
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if name not in factors}
    return merge_lora(plain, factors, "the trained network", alpha) if factors else plain
