"""OSEDiff's checkpoint merged into plain weights: recorded LoRA, both layouts, refusals."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from basicsr_quant.archs.published.osediff import import_osediff, merge_lora
from basicsr_quant.errors import UserError

LISTS = ("unet_lora_encoder_modules", "unet_lora_decoder_modules", "unet_lora_others_modules",
         "vae_lora_encoder_modules")


def test_recorded_merge(fixtures) -> None:
    record = load_file(fixtures / "passionsr" / "lora_merge.safetensors")
    trained = {name.removeprefix("peft."): value for name, value in record.items() if name.startswith("peft.")}
    base = {name.replace(".base_layer", ""): torch.zeros_like(value) for name, value in trained.items()
            if "base_layer" in name}
    merged = merge_lora(base, trained, "file")
    for name, value in record.items():
        if name.startswith("merged."):
            torch.testing.assert_close(merged[name.removeprefix("merged.")], value, rtol=0, atol=1e-7)
    for layer, padding in (("conv", 1), ("conv_shortcut", 0)):
        output = functional.conv2d(record["y"], merged[f"{layer}.weight"], merged[f"{layer}.bias"], padding=padding)
        torch.testing.assert_close(output, record[f"out_{layer}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(functional.linear(record["x"], merged["to_q.weight"]), record["out_to_q"], rtol=0,
                               atol=1e-5)


@pytest.fixture
def networks() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    unet = {"conv_in.weight": torch.randn(6, 4, 3, 3), "conv_in.bias": torch.randn(6),
            "up_blocks.0.attn.to_q.weight": torch.randn(6, 6), "norm.weight": torch.randn(6)}
    vae = {"encoder.conv_in.weight": torch.randn(6, 3, 3, 3), "decoder.conv_in.weight": torch.randn(6, 4, 3, 3)}
    return unet, vae


def factors(layer: str, adapter: str, weight: torch.Tensor, rank: int = 2) -> dict[str, torch.Tensor]:
    ones = (1,) * (weight.dim() - 2)
    return {f"{layer}.lora_A.{adapter}.weight": torch.randn(rank, *weight.shape[1:]),
            f"{layer}.lora_B.{adapter}.weight": torch.randn(weight.shape[0], rank, *ones)}


@pytest.fixture
def checkpoint(networks) -> dict[str, object]:
    unet, vae = networks
    trained = {"conv_in.base_layer.weight": torch.randn(6, 4, 3, 3), "conv_in.base_layer.bias": torch.randn(6),
               **factors("conv_in", "default_encoder", unet["conv_in.weight"]),
               **factors("up_blocks.0.attn.to_q", "default_decoder", unet["up_blocks.0.attn.to_q.weight"])}
    return {"rank_unet": 2, "rank_vae": 2, **{name: ["layer"] for name in LISTS}, "state_dict_unet": trained,
            "state_dict_vae": factors("encoder.conv_in", "default_encoder", vae["encoder.conv_in.weight"])}


def earlier_layout(checkpoint: dict[str, object], vae: dict[str, torch.Tensor]) -> dict[str, object]:
    other = {name: value for name, value in checkpoint.items() if not name.startswith("state_dict")}
    trained = {name.replace(".base_layer", ""): value for name, value in checkpoint["state_dict_unet"].items()}
    ignored = factors("decoder.conv_in", "default_decoder", vae["decoder.conv_in.weight"])
    return {**other, "vae_lora_decoder_modules": [], "unet_state_dict": trained,
            "vae_state_dict": {**checkpoint["state_dict_vae"], **ignored}}


def test_both_layouts_give_the_same(networks, checkpoint) -> None:
    unet, vae = networks
    before = {name: value.clone() for name, value in unet.items()}
    merged_unet, merged_vae = import_osediff(checkpoint, unet, vae)
    assert all(torch.equal(unet[name], value) for name, value in before.items())
    assert list(merged_unet) == list(unet) and list(merged_vae) == list(vae)
    trained = checkpoint["state_dict_unet"]
    change = torch.einsum("orxy,rihw->oihw", trained["conv_in.lora_B.default_encoder.weight"],
                          trained["conv_in.lora_A.default_encoder.weight"])
    torch.testing.assert_close(merged_unet["conv_in.weight"], trained["conv_in.base_layer.weight"] + 4 * change)
    assert torch.equal(merged_unet["conv_in.bias"], trained["conv_in.base_layer.bias"])
    assert torch.equal(merged_unet["norm.weight"], unet["norm.weight"])
    assert torch.equal(merged_vae["decoder.conv_in.weight"], vae["decoder.conv_in.weight"])
    assert not torch.equal(merged_vae["encoder.conv_in.weight"], vae["encoder.conv_in.weight"])
    again = import_osediff(earlier_layout(checkpoint, vae), unet, vae)
    for first, second in zip((merged_unet, merged_vae), again, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_missing_adapters_are_tolerated(networks, checkpoint) -> None:
    unet, vae = networks
    checkpoint["state_dict_vae"] = {}
    for name in LISTS:
        del checkpoint[name]
    assert torch.equal(import_osediff(checkpoint, unet, vae)[1]["encoder.conv_in.weight"],
                       vae["encoder.conv_in.weight"])


def test_half_precision_stays(networks, checkpoint) -> None:
    unet, vae = ({name: value.half() for name, value in state.items()} for state in networks)
    assert {value.dtype for value in import_osediff(checkpoint, unet, vae)[0].values()} == {torch.float16}


@pytest.mark.parametrize(("change", "message"), [
    ({"rank_unets": 2}, "unknown key 'rank_unets' .did you mean 'rank_unet'"),
    ({"unet_state_dict": {}}, "found 2"),
    ({"rank_unet": 4}, "does not fit rank_unet 4"),
    ({"state_dict_unet": {"norm.running_mean": torch.ones(1)}}, "unknown key 'norm.running_mean'"),
    ({"state_dict_unet": {"norm.lora_C.default_encoder.weight": torch.ones(1)}}, "unknown key 'norm.lora_C"),
    ({"state_dict_unet": {"conv_in.lora_A.mine.weight": torch.ones(2, 1)}}, "unknown key 'conv_in.lora_A.mine"),
    ({"state_dict_unet": {"conv_in.bias": torch.ones(5)}}, "'conv_in.bias' has shape"),
    ({"state_dict_unet": factors("nowhere", "default_others", torch.ones(3, 3))}, "belongs to no layer"),
    ({"state_dict_unet": {"conv_in.lora_A.default_encoder.weight": torch.ones(2, 4, 3, 3)}}, "lacks one"),
    ({"state_dict_unet": factors("conv_in", "default_encoder", torch.ones(6, 5, 3, 3))}, "has shape .6, 5, 3, 3."),
])
def test_refusals(networks, checkpoint, change, message) -> None:
    with pytest.raises(UserError, match=message):
        import_osediff({**checkpoint, **change}, *networks)


def test_state_dict_is_needed(networks, checkpoint) -> None:
    del checkpoint["state_dict_unet"]
    with pytest.raises(UserError, match="found 0"):
        import_osediff(checkpoint, *networks)
