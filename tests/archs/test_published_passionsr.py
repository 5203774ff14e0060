"""Names diffusers <-> ldm against the table of all 354 quantized layers."""

from __future__ import annotations

import csv

import pytest

from basicsr_quant.archs.published.passionsr import KEPT_8BIT, to_diffusers, to_ldm
from basicsr_quant.errors import UserError


@pytest.fixture(scope="module")
def table(fixtures) -> list[dict[str, str]]:
    with open(fixtures / "passionsr" / "passionsr_layers.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_all_layers_both_ways(table) -> None:
    assert len(table) == 354
    for row in table:
        assert to_ldm(row["component"], row["diffusers_name"]) == row["ldm_name"]
        assert to_diffusers(row["component"], row["ldm_name"]) == row["diffusers_name"]


def test_layers_kept_at_8_bits(table) -> None:
    for component, names in KEPT_8BIT.items():
        assert {row["diffusers_name"] for row in table
                if row["component"] == component and row["kept_8bit"] == "1"} == set(names)


@pytest.mark.parametrize(("component", "diffusers", "ldm"), [
    ("unet", "conv_norm_out.weight", "out.0.weight"),
    ("unet", "down_blocks.1.resnets.0.norm2.bias", "input_blocks.4.0.out_layers.0.bias"),
    ("unet", "mid_block.attentions.0.norm.weight", "middle_block.1.norm.weight"),
    ("unet", "up_blocks.3.attentions.2.transformer_blocks.0.norm3.bias",
     "output_blocks.11.1.transformer_blocks.0.norm3.bias"),
    ("unet", "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
    ("vae", "encoder.mid_block.attentions.0.group_norm.weight", "encoder.mid.attn_1.norm.weight"),
    ("vae", "decoder.conv_norm_out.bias", "decoder.norm_out.bias"),
    ("vae", "decoder.up_blocks.0.resnets.2.norm1.weight", "decoder.up.3.block.2.norm1.weight"),
])
def test_parameters_and_norms(component, diffusers, ldm) -> None:
    assert to_ldm(component, diffusers) == ldm
    assert to_diffusers(component, ldm) == diffusers


@pytest.mark.parametrize(("component", "name"), [("unet", "up_blocks.0.attentions.0.norm"), ("vae", "conv_in"),
                                                 ("unet", "nothing")])
def test_unknown_names(component, name) -> None:
    with pytest.raises(UserError, match=f"'{name}' is no diffusers name of a {component}"):
        to_ldm(component, name)
