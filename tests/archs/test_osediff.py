"""OSEDiff's networks on the meta device, the one-step formula, and where shortcuts are joined."""

from __future__ import annotations

import csv
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from basicsr_quant.archs.osediff import (
    ALPHA_BAR,
    SD21_UNET,
    TIMESTEP,
    build_unet,
    build_vae,
    clean_latent,
    concat_splits,
    noise_schedule,
)
from basicsr_quant.errors import UserError

TINY = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": (2, 4),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D",
                                                                                     "CrossAttnUpBlock2D")}


def on_meta(build):
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize(("component", "build", "parameters"),
                         [("unet", build_unet, 865_910_724), ("vae", build_vae, 83_653_863)])
def test_layers_are_those_of_the_table(fixtures, component, build, parameters) -> None:
    network = on_meta(build)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    found = {name: (type(module).__name__, "x".join(map(str, module.weight.shape)), str(int(module.bias is not None)))
             for name, module in network.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
    with open(fixtures / "passionsr" / "passionsr_layers.csv", newline="") as file:
        expected = {row["diffusers_name"]: (row["diffusers_type"], row["weight_shape"], row["has_bias"])
                    for row in csv.DictReader(file) if row["component"] == component}
    assert found == expected


def test_schedule_and_clean_latent(fixtures) -> None:
    record = load_file(fixtures / "passionsr" / "x0_and_schedule.safetensors")
    schedule = noise_schedule()
    torch.testing.assert_close(schedule, record["alphas_cumprod"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(float(record["alphas_cumprod"][TIMESTEP]), ALPHA_BAR, rtol=1e-9, atol=0)
    assert int(record["timestep"]) == TIMESTEP
    found = clean_latent(record["latent"], record["eps"])
    torch.testing.assert_close(found, record["x0_double_path"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, record["x0_float32"], rtol=1e-5, atol=2e-5)
    assert clean_latent(record["latent"].half(), record["eps"].half()).dtype == torch.float16


def test_shortcuts_of_the_full_network() -> None:
    splits = concat_splits(on_meta(build_unet))
    assert len(splits) == 24
    assert [splits[f"up_blocks.{block}.resnets.{resnet}.conv1"] for block in range(4) for resnet in range(3)] == [
        1280, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320]
    assert splits["up_blocks.1.resnets.2.conv_shortcut"] == 1280


def test_shortcuts_are_where_a_forward_joins(monkeypatch) -> None:
    pytest.importorskip("diffusers")
    unet = build_unet({**SD21_UNET, **TINY})
    splits, joined = concat_splits(unet), []
    cat = torch.cat

    def recorded(tensors, dim=0, **rest):
        if len(tensors) == 2 and dim == 1 and tensors[0].dim() == 4:
            joined.append((tensors[0].shape[1], tensors[0].shape[1] + tensors[1].shape[1]))
        return cat(tensors, dim=dim, **rest)

    monkeypatch.setattr(torch, "cat", recorded)
    with torch.no_grad():
        unet(torch.randn(1, 4, 8, 8), TIMESTEP, torch.randn(1, 3, 16))
    expected = [(at, unet.get_submodule(name).in_channels) for name, at in splits.items() if name.endswith("conv1")]
    assert joined == expected and len(expected) == 4


def test_missing_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="'diffusers' is not installed"):
        build_unet()
