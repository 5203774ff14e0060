"""OSEDiff's published checkpoint (LoRA and a trained conv_in) merged into Stable Diffusion's weights: dicts to dicts.

Source: PassionSR specification 1.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from basicsr_quant.errors import UserError
from basicsr_quant.registry import nearest

State = dict[str, Tensor]

LORA_ALPHA = 8
ADAPTERS = ("default_encoder", "default_decoder", "default_others")
_UNET = ("state_dict_unet", "unet_state_dict")
_VAE = ("state_dict_vae", "vae_state_dict")
_RANKS = ("rank_unet", "rank_vae")
_LISTS = ("unet_lora_encoder_modules", "unet_lora_decoder_modules", "unet_lora_others_modules",
          "vae_lora_encoder_modules", "vae_lora_decoder_modules")
_KNOWN = [*_UNET, *_VAE, *_RANKS, *_LISTS]
_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])\.(?P<adapter>[^.]+)\.weight")
_BASE = re.compile(r"(?P<layer>.+?)(?:\.base_layer)?\.(?P<kind>weight|bias)")


def import_osediff(checkpoint: Mapping[str, Any], unet: Mapping[str, Tensor], vae: Mapping[str, Tensor],
                   where: str = "osediff.pkl", alpha: float = LORA_ALPHA) -> tuple[State, State]:
    """Merge OSEDiff's training into the weights of Stable Diffusion 2.1-base.

    Both layouts are read: that of OSEDiff (``state_dict_unet``) and the earlier one that PassionSR uses
    (``unet_state_dict``), whose adapters for the VAE's decoder are passed over.

    Args:
        checkpoint: Content of ``osediff.pkl`` or ``osediff.ckpt``.
        unet: State dict of diffusers' UNet2DConditionModel.
        vae: State dict of diffusers' AutoencoderKL.
        where: Names the file in messages.
        alpha: Of LoRA, see :func:`merge_lora`.

    Returns:
        Merged state dicts of the UNet and the VAE, keys as given.

    Raises:
        UserError: An unknown key, a missing part, a rank or shape that does not fit.
    """
    for key in checkpoint:
        if key not in _KNOWN:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), _KNOWN)}; this is no OSEDiff checkpoint")
    trained_unet, trained_vae = (_part(checkpoint, spellings, where) for spellings in (_UNET, _VAE))
    trained_vae = {name: tensor for name, tensor in trained_vae.items() if "default_decoder" not in name}
    for trained, rank in ((trained_unet, "rank_unet"), (trained_vae, "rank_vae")):
        for name, tensor in trained.items():
            found = _LORA.fullmatch(name)
            if found and rank in checkpoint and tensor.shape[found["factor"] == "B"] != checkpoint[rank]:
                raise UserError(f"{where}: '{name}' has shape {tuple(tensor.shape)}, which does not fit "
                                f"{rank} {checkpoint[rank]}; restore the file from a copy")
    return (merge_lora(unet, trained_unet, f"{where}:unet", alpha),
            merge_lora(vae, trained_vae, f"{where}:vae", alpha))


def _part(checkpoint: Mapping[str, Any], spellings: tuple[str, str], where: str) -> State:
    present = [name for name in spellings if name in checkpoint]
    if len(present) != 1:
        raise UserError(f"{where}: expected one of '{spellings[0]}' and '{spellings[1]}', found {len(present)}; "
                        "this is no OSEDiff checkpoint")
    return dict(checkpoint[present[0]])


def merge_lora(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], where: str,
               alpha: float = LORA_ALPHA) -> State:
    """Return ``base`` with trained base weights put in and then W + alpha / rank * B A for every pair of factors.

    Args:
        base: State dict of the plain network.
        trained: ``<layer>.lora_A.<adapter>.weight`` (r, in[, kh, kw]) and ``<layer>.lora_B.<adapter>.weight``
            (out, r[, 1, 1]), ``<layer>[.base_layer].weight`` and ``.bias``.
        where: Names the file in messages.
        alpha: Of LoRA; 8 is what peft had as its default.

    Raises:
        UserError: A key of no known form, layer or adapter, half of a pair, a shape that does not fit.
    """
    merged = dict(base)
    factors: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in trained.items():
        lora, plain = _LORA.fullmatch(name), _BASE.fullmatch(name)
        if lora and lora["adapter"] in ADAPTERS:
            factors.setdefault((lora["layer"], lora["adapter"]), {})[lora["factor"]] = tensor
        elif not lora and plain and f"{plain['layer']}.{plain['kind']}" in base:
            target = f"{plain['layer']}.{plain['kind']}"
            _check_shape(name, tensor.shape, base[target].shape, where)
            merged[target] = tensor.to(base[target].dtype)
        else:
            raise UserError(f"{where}: unknown key '{name}'; neither LoRA nor a weight of this network")
    for (layer, adapter), pair in factors.items():
        target = f"{layer}.weight"
        label = f"{layer}.lora_A/lora_B.{adapter}"
        if target not in base:
            raise UserError(f"{where}: '{label}' belongs to no layer of this network")
        if len(pair) != 2:
            raise UserError(f"{where}: '{label}' lacks one of its two factors; restore the file from a copy")
        down, up = pair["A"], pair["B"]
        weight = merged[target]
        if down.shape[0] != up.shape[1]:
            raise UserError(f"{where}: the factors of '{label}' have ranks {down.shape[0]} and {up.shape[1]}")
        _check_shape(label, (up.shape[0], *down.shape[1:]), weight.shape, where)
        change = (up.float().flatten(1) @ down.float().flatten(1)).view_as(weight)
        merged[target] = (weight.float() + alpha / down.shape[0] * change).to(weight.dtype)
    return merged


def _check_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if tuple(found) != tuple(expected):
        raise UserError(f"{where}: '{name}' has shape {tuple(found)}, the network's layer {tuple(expected)}; check "
                        "path:sd and path:osediff")
