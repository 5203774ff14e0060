"""State dicts of SwinIR and of 2DQuant as published, to and from our own names: dicts in, dicts out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from basicsr_quant.archs.window_attention import relative_position_index, shift_mask

State = dict[str, Tensor]

BUFFERS = ("attn_mask", "relative_position_index")
_BIAS_TABLE = re.compile(r"(.*layers\.\d+\.residual_group\.blocks\.(\d+))\.attn\.relative_position_bias_table")
_TO_OURS = [
    (re.compile(r"(\.attn\.qkv)\.q(?=\.|$)"), r"\1.parts.0"),
    (re.compile(r"(\.attn\.qkv)\.k(?=\.|$)"), r"\1.parts.1"),
    (re.compile(r"(\.attn\.qkv)\.v(?=\.|$)"), r"\1.parts.2"),
    (re.compile(r"\.attn\.mymodule_q(?=\.|$)"), ".attn.query"),
    (re.compile(r"\.attn\.mymodule_k(?=\.|$)"), ".attn.key"),
    (re.compile(r"\.attn\.mymodule_v(?=\.|$)"), ".attn.value"),
    (re.compile(r"\.attn\.mymodule_a(?=\.|$)"), ".attn.attention_map"),
    (re.compile(r"\.act_quantizer(?=\.|$)"), ".activation_quantizer"),
]
_TO_PUBLISHED = [
    (re.compile(r"(\.attn\.qkv)\.parts\.0(?=\.|$)"), r"\1.q"),
    (re.compile(r"(\.attn\.qkv)\.parts\.1(?=\.|$)"), r"\1.k"),
    (re.compile(r"(\.attn\.qkv)\.parts\.2(?=\.|$)"), r"\1.v"),
    (re.compile(r"\.attn\.query(?=\.|$)"), ".attn.mymodule_q"),
    (re.compile(r"\.attn\.key(?=\.|$)"), ".attn.mymodule_k"),
    (re.compile(r"\.attn\.value(?=\.|$)"), ".attn.mymodule_v"),
    (re.compile(r"\.attn\.attention_map(?=\.|$)"), ".attn.mymodule_a"),
    (re.compile(r"\.activation_quantizer(?=\.|$)"), ".act_quantizer"),
]


def _rename(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


def import_swinir(state: Mapping[str, Tensor]) -> State:
    """Turn a published SwinIR state dict into ours: names are the same, masks and index buffers are left out."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] not in BUFFERS}


def export_swinir(state: Mapping[str, Tensor], network_options: Mapping[str, Any] | None = None) -> State:
    """Turn our SwinIR state dict into the published one, with its buffers.

    Args:
        state: Our names.
        network_options: Arguments of the network; only ``img_size`` is read, for the size of the stored masks.

    Returns:
        Published names: ``relative_position_index`` (N, N) int64 in every block, ``attn_mask`` (windows, N, N) in every
        shifted one.

    Source: state dict of the official SwinIR weights.
    """
    size = int((network_options or {}).get("img_size", 64))
    exported: State = {}
    for name, tensor in state.items():
        exported[name] = tensor
        table = _BIAS_TABLE.fullmatch(name)
        if table is None:
            continue
        window = (math.isqrt(tensor.shape[0]) + 1) // 2
        exported[f"{table[1]}.attn.relative_position_index"] = relative_position_index(window)
        if int(table[2]) % 2 and size > window:
            exported[f"{table[1]}.attn_mask"] = shift_mask((size, size), window, window // 2, torch.zeros(()))
    return exported


def import_2dquant(state: Mapping[str, Tensor]) -> tuple[State, dict[str, int]]:
    """Turn a published quantized state dict into ours, with split or joint q, k, v.

    Returns:
        Our state dict, and the bit-width of every quantizer by its name in our module tree.

    Source: checkpoints of 2DQuant's code (``n_bit`` is rounded there before use).
    """
    imported: State = {}
    bits: dict[str, int] = {}
    for published, tensor in import_swinir(state).items():
        name = _rename(published, _TO_OURS)
        if name.endswith(".n_bit"):
            bits[name.removesuffix(".n_bit")] = round(float(tensor))
        else:
            imported[name] = tensor
    return imported, bits


def export_2dquant(
    state: Mapping[str, Tensor], bits: Mapping[str, int], network_options: Mapping[str, Any] | None = None
) -> State:
    """Turn our quantized state dict into the published one.

    Args:
        state: Our names; every quantizer has ``lower_bound`` and ``upper_bound``, of one element as published or one
            for each channel.
        bits: Bit-width of every quantizer by its name in our module tree.
        network_options: See :func:`export_swinir`.

    Returns:
        Published names, single bounds and ``n_bit`` of shape (1,), with the network's buffers.

    Raises:
        ValueError: ``bits`` and the quantizers in ``state`` are not the same.
    """
    quantizers = [name.removesuffix(".upper_bound") for name in state if name.endswith(".upper_bound")]
    unlike = sorted(set(quantizers) ^ set(bits))
    if unlike:
        raise ValueError(f"bit-widths and bounds disagree about the quantizer '{unlike[0]}' ({len(unlike)} in all)")
    exported: State = {}
    for name, tensor in export_swinir(state, network_options).items():
        quantizer, _, last = name.rpartition(".")
        if last in ("lower_bound", "upper_bound") and tensor.numel() == 1:
            tensor = tensor.detach().reshape(1)
        exported[_rename(name, _TO_PUBLISHED)] = tensor
        if last == "upper_bound":
            exported[_rename(quantizer, _TO_PUBLISHED) + ".n_bit"] = torch.tensor([float(bits[quantizer])])
    return exported
