"""Names of PassionSR's published weights (those of the ldm networks) to and from diffusers' names.

Source: PassionSR specification 3.1; the networks are those of Stable Diffusion 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal

from basicsr_quant.errors import UserError

Component = Literal["unet", "vae"]

KEPT_8BIT: Mapping[Component, tuple[str, ...]] = {
    "unet": ("time_embedding.linear_1", "conv_out"),
    "vae": ("quant_conv", "post_quant_conv", "encoder.conv_out", "decoder.conv_out"),
}
_UNET_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
                "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
_VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_LEVELS, _LAYERS = 4, 2


def to_ldm(component: Component, name: str) -> str:
    """Return the ldm name of a diffusers module or parameter; what lies inside a known module keeps its name.

    Raises:
        UserError: The name belongs to no module of the network.
    """
    return _translated(_names(component)[0], component, name, "diffusers")


def to_diffusers(component: Component, name: str) -> str:
    """Return the diffusers name of an ldm module or parameter; the inverse of :func:`to_ldm`.

    Raises:
        UserError: The name belongs to no module of the network.
    """
    return _translated(_names(component)[1], component, name, "ldm")


def _translated(table: Mapping[str, str], component: Component, name: str, source: str) -> str:
    head, tail = name, ""
    while head not in table:
        head, dot, last = head.rpartition(".")
        if not dot:
            raise UserError(f"'{name}' is no {source} name of a {component} of Stable Diffusion 2.1")
        tail = f".{last}{tail}"
    return table[head] + tail


@cache
def _names(component: Component) -> tuple[dict[str, str], dict[str, str]]:
    """Return module names diffusers -> ldm and back."""
    forward = dict(_unet_names() if component == "unet" else _vae_names())
    return forward, {ldm: diffusers for diffusers, ldm in forward.items()}


def _inside(diffusers: str, ldm: str, inner: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"{diffusers}.{ours}", f"{ldm}.{theirs}") for ours, theirs in inner.items())


def _unet_names() -> Iterator[tuple[str, str]]:
    yield from {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
                "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2",
                "mid_block.attentions.0": "middle_block.1"}.items()
    for j in range(2):
        yield from _inside(f"mid_block.resnets.{j}", f"middle_block.{2 * j}", _UNET_RESNET)
    stride = _LAYERS + 1
    for i in range(_LEVELS):
        plain_down, plain_up, last = i == _LEVELS - 1, i == 0, i == _LEVELS - 1
        for j in range(_LAYERS):
            block = f"input_blocks.{stride * i + j + 1}"
            yield from _inside(f"down_blocks.{i}.resnets.{j}", f"{block}.0", _UNET_RESNET)
            if not plain_down:
                yield f"down_blocks.{i}.attentions.{j}", f"{block}.1"
        for j in range(_LAYERS + 1):
            block = f"output_blocks.{stride * i + j}"
            yield from _inside(f"up_blocks.{i}.resnets.{j}", f"{block}.0", _UNET_RESNET)
            if not plain_up:
                yield f"up_blocks.{i}.attentions.{j}", f"{block}.1"
        if not last:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{stride * (i + 1)}.0.op"
            yield (f"up_blocks.{i}.upsamplers.0.conv",
                   f"output_blocks.{stride * i + _LAYERS}.{1 if plain_up else 2}.conv")


def _vae_names() -> Iterator[tuple[str, str]]:
    for layer in ("quant_conv", "post_quant_conv"):
        yield layer, layer
    for part, block, ldm_block in (("encoder", "down_blocks", "down"), ("decoder", "up_blocks", "up")):
        for ours, theirs in {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}.items():
            yield f"{part}.{ours}", f"{part}.{theirs}"
        for j in range(2):
            yield from _inside(f"{part}.mid_block.resnets.{j}", f"{part}.mid.block_{j + 1}", _VAE_RESNET)
        yield from _inside(f"{part}.mid_block.attentions.0", f"{part}.mid.attn_1", _VAE_ATTENTION)
        for i in range(_LEVELS):
            level = i if part == "encoder" else _LEVELS - 1 - i
            for j in range(_LAYERS if part == "encoder" else _LAYERS + 1):
                yield from _inside(f"{part}.{block}.{i}.resnets.{j}", f"{part}.{ldm_block}.{level}.block.{j}",
                                   _VAE_RESNET)
            if i < _LEVELS - 1:
                kind = "downsample" if part == "encoder" else "upsample"
                yield f"{part}.{block}.{i}.{kind}rs.0.conv", f"{part}.{ldm_block}.{level}.{kind}.conv"
