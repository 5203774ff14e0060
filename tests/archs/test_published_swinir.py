from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from basicsr_quant.archs.published.swinir import (
    export_2dquant,
    export_swinir,
    import_2dquant,
    import_swinir,
)
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.io.weights import load_state_dict


def _keys(fixtures: Path, name: str) -> dict[str, list[int]]:
    keys: dict[str, list[int]] = json.loads((fixtures / "2dquant" / name).read_text())
    return keys


def _shapes(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}


def _quantized(
    state: dict[str, Tensor], split: bool, convolutions: bool = False
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Give a state dict the names that prepare() gives."""
    quantized: dict[str, Tensor] = {}
    quantizers: list[str] = []
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if split and layer.endswith("attn.qkv"):
            for index, part in enumerate(tensor.chunk(3)):
                quantized[f"{layer}.parts.{index}.{kind}"] = part
                quantizers += [f"{layer}.parts.{index}.{which}" for which in _BOTH] if kind == "weight" else []
            continue
        quantized[name] = tensor
        convolution = layer.startswith("layers.") and layer.endswith(".conv")
        wanted = layer.endswith(("qkv", "proj", "fc1", "fc2")) or (convolutions and convolution)
        if kind == "weight" and wanted:
            quantizers += [f"{layer}.{which}" for which in _BOTH]
        if kind == "relative_position_bias_table":
            quantizers += [f"{layer}.{operand}" for operand in ("query", "key", "value", "attention_map")]
    for index, quantizer in enumerate(quantizers):
        quantized[f"{quantizer}.lower_bound"] = torch.tensor([-1.0 - index])
        quantized[f"{quantizer}.upper_bound"] = torch.tensor([1.0 + index])
    return quantized, {quantizer: 2 + index % 3 for index, quantizer in enumerate(quantizers)}


_BOTH = ("weight_quantizer", "activation_quantizer")


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=0)


def test_exported_keys_equal_the_published_network(fixtures: Path) -> None:
    state = SwinIR(4).state_dict()
    exported = export_swinir(state)
    assert _shapes(exported) == _keys(fixtures, "swinir_light_keys_x4.json")
    assert len(exported) == 366
    _equal(import_swinir(exported), dict(state))


def test_buffers_have_the_published_values(fixtures: Path) -> None:
    recorded = load_file(fixtures / "2dquant" / "tiny_swinir_fp.safetensors")
    weights = {name.removeprefix("weights."): value for name, value in recorded.items() if name.startswith("weights.")}
    _equal(export_swinir(import_swinir(weights), {"img_size": 32}), weights)


def test_exported_keys_equal_the_published_quantized_network(fixtures: Path) -> None:
    ours, bits = _quantized(SwinIR(4).state_dict(), split=True)
    assert len(bits) == 384
    exported = export_2dquant(ours, bits)
    assert _shapes(exported) == _keys(fixtures, "net_Q_keys_x4.json")
    assert len(exported) == 1614
    assert all(value.dtype == torch.float32 for name, value in exported.items() if not name.endswith("index"))
    again, again_bits = import_2dquant(exported)
    _equal(again, ours)
    assert again_bits == bits


@pytest.mark.parametrize("convolutions", [False, True])
def test_joint_qkv_and_convolutions_survive_the_round_trip(convolutions: bool) -> None:
    network: dict[str, Any] = {"img_size": 16, "depths": [2], "embed_dim": 12, "num_heads": [3]}
    ours, bits = _quantized(SwinIR(2, **network).state_dict(), split=False, convolutions=convolutions)
    exported = export_2dquant(ours, bits, network)
    block = "layers.0.residual_group.blocks.1"
    assert exported[f"{block}.attn.qkv.act_quantizer.n_bit"].shape == (1,)
    assert exported[f"{block}.attn_mask"].shape == (4, 64, 64)
    assert ("layers.0.conv.act_quantizer.lower_bound" in exported) is convolutions
    again, again_bits = import_2dquant(exported)
    _equal(again, ours)
    assert again_bits == bits


def test_published_sample_is_imported(fixtures: Path) -> None:
    path = fixtures / "2dquant" / "tiny_net_Q_5.pth"
    published = load_state_dict(path)
    state, bits = import_2dquant(published)
    assert len(published) == 280 and len(bits) == 64 and set(bits.values()) == {4}
    block = "layers.1.residual_group.blocks.0"
    assert state[f"{block}.attn.qkv.parts.2.weight"].shape == (24, 24)
    torch.testing.assert_close(state[f"{block}.attn.attention_map.upper_bound"],
                               published[f"{block}.attn.mymodule_a.upper_bound"])
    torch.testing.assert_close(state[f"{block}.mlp.fc2.activation_quantizer.lower_bound"],
                               published[f"{block}.mlp.fc2.act_quantizer.lower_bound"])
    _equal(export_2dquant(state, bits, {"img_size": 32}), published)


def test_bits_must_match_the_quantizers() -> None:
    ours, bits = _quantized(SwinIR(2, depths=[2], embed_dim=12, num_heads=[3]).state_dict(), split=True)
    bits.popitem()
    with pytest.raises(ValueError, match="disagree"):
        export_2dquant(ours, bits)
