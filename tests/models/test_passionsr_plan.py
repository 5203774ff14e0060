"""PassionSR's plan against the table of all 354 layers, and equality of transformed networks."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from passionsr_networks import CORRECTED, LATENT, RELEASED, example, full_on_meta, narrow, prepared, run

from basicsr_quant.archs.latent_tiling import tiled_prediction
from basicsr_quant.archs.osediff import build_unet, build_vae, concat_splits
from basicsr_quant.archs.osediff_lora import add_lora, merged_state, unet_layers, vae_layers
from basicsr_quant.archs.vae_tiling import decode_latent, encode_moments
from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.models.passionsr_folding import fold_norms
from basicsr_quant.models.passionsr_plan import default_plan, key_tokens_of, layer_rows
from basicsr_quant.quant.calibrate import set_state
from basicsr_quant.quant.layers.attention import QuantAttention
from basicsr_quant.quant.layers.weighted import frozen_weights, weighted_layers
from basicsr_quant.quant.let import Scale, Transformation
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State
from basicsr_quant.quant.split_quantizer import SplitQuantizer

load_torchvision()
OPERANDS = ["query_quantizer", "key_quantizer", "map_quantizer", "value_quantizer"]


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_layers_are_those_of_the_table(fixtures, component: str) -> None:
    with open(fixtures / "passionsr" / "passionsr_layers.csv", newline="") as file:
        table = [row for row in csv.DictReader(file) if row["component"] == component]
    network = prepared(component, full_on_meta(component), (64, 64), weight_bits=6, activation_bits=5, **CORRECTED)
    rows = layer_rows(component, network)
    layers = {row["name"]: row for row in rows if row["type"] != "Operand"}
    assert set(layers) == {row["diffusers_name"] for row in table}
    for row in table:
        found, kept = layers[row["diffusers_name"]], row["kept_8bit"] == "1"
        assert found["component"] == component and found["type"] == row["diffusers_type"]
        assert "x".join(map(str, found["weight_shape"])) == row["weight_shape"]
        assert (found["weight_bits"], found["activation_bits"]) == ((8, 8) if kept else (6, 5))
        assert found["bias_bits"] == (None if row["has_bias"] == "0" else 8 if kept else 6)
    operands = [row for row in rows if row["type"] == "Operand"]
    assert len(operands) == (128 if component == "unet" else 0)
    assert {row["activation_bits"] for row in operands} <= {5}


def test_released_and_corrected_splits() -> None:
    unet = narrow("unet")
    joined = concat_splits(unet)
    released = prepared("unet", narrow("unet"), split="half", **RELEASED)
    for name, layer in weighted_layers(released):
        assert isinstance(layer.weight_quantizer, SplitQuantizer) and layer.weight_quantizer.at is None, name
        assert layer.activation_quantizer.axis == 1
    corrected = prepared("unet", narrow("unet"), split="concat", **CORRECTED)
    found = {name: layer.weight_quantizer.at for name, layer in weighted_layers(corrected)
             if isinstance(layer.weight_quantizer, SplitQuantizer)}
    assert found == joined and len(found) == 24


def test_smoothing_per_key_token_is_an_option() -> None:
    unet = full_on_meta("unet")
    tokens = key_tokens_of(unet)
    assert sorted(set(tokens.values())) == [64, 77, 256, 1024, 4096]
    assert tokens["up_blocks.1.*.attn1"] == tokens["down_blocks.2.*.attn1"] == 256
    plain = prepared("unet", narrow("unet"), None, **CORRECTED)
    assert all(module.scale_av is None for module in plain.modules() if isinstance(module, QuantAttention))
    none = prepared("unet", narrow("unet"), None)
    assert not any(isinstance(module, Scale) for module in none.modules())
    tied = prepared("unet", narrow("unet"), **CORRECTED)
    set_state(tied, State.OFF)
    run("unet", tied, example("unet"))
    with pytest.raises(UserError, match="calibrated for 256 key tokens, the input has 64"):
        run("unet", tied, example("unet")[:, :, :8, :8])


def test_plans_survive_being_written(fixtures) -> None:
    for component in ("unet", "vae"):
        for rules in (RELEASED, CORRECTED, {}):
            for split in ("half", "concat", "none"):
                lines = default_plan(component, narrow(component), split=split, **rules)
                plan = QuantPlan.parse(lines)
                assert QuantPlan.parse(plan.as_list()).lines == plan.lines


def test_concat_needs_a_joint() -> None:
    unet = narrow("unet")
    plan = QuantPlan.parse(default_plan("unet", unet, split="concat", **CORRECTED))
    with pytest.raises(UserError, match="'up_blocks.0.resnets.0.conv1': split_in 'concat': nothing is known"):
        prepare(unet, plan)


def randomise(network: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Scale):
                module.value.uniform_(0.3, 3, generator=generator)
            if isinstance(module, Transformation):
                module.offset.normal_(generator=generator).mul_(0.5)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("padding", ["zero_after", "transformed_zero"])
@pytest.mark.parametrize("component", ["unet", "vae"])
def test_transformed_networks_are_equal(component: str, padding: str) -> None:
    network, x = narrow(component), example(component)
    expected = run(component, network, x)
    rules: dict[str, Any] = {"split": "concat", "let": {"padding": padding}, "smooth": {}}
    network = prepared(component, network, **rules)
    randomise(network)
    set_state(network, State.OFF)
    with torch.no_grad():
        assert distance(run(component, network, x), expected) < 1e-4
        assert fold_norms(network) == (32 if component == "unet" else 0)
        with frozen_weights(network):
            assert distance(run(component, network, x), expected) < 1e-4


def tiled(component: str, network: Any, x: torch.Tensor) -> torch.Tensor:
    """The network as the pipeline runs it, the input being one tile."""
    if component == "vae":
        return decode_latent(network, encode_moments(network, x, x.shape[-1]).chunk(2, 1)[0], x.shape[-1])
    return tiled_prediction(lambda latent: run("unet", network, latent), x, x.shape[-1], x.shape[-1] // 2)


@pytest.mark.slow
@pytest.mark.parametrize("component", ["unet", "vae"])
def test_full_networks_are_equal(component: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At full width: low-rank factors merged, one tile, inputs transformed, norms folded."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    build = {"unet": build_unet, "vae": build_vae}[component]
    trained = build().eval()
    add_lora(trained, {"unet": unet_layers, "vae": vae_layers}[component](trained), 4, 8, 1, component)
    x = example(component, batch=1)
    with torch.no_grad():
        plain = run(component, trained, x)
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
        expected = run(component, trained, x)
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu").eval().requires_grad_(False).load_state_dict(merged_state(trained, 8))
    del trained
    assert distance(plain, expected) > 1e-2
    with torch.no_grad():
        found = {"merged": run(component, network, x), "one tile": tiled(component, network, x)}
        network = prepared(component, network, LATENT, split="concat", **CORRECTED)
        randomise(network)
        set_state(network, State.OFF)
        found["transformed"] = tiled(component, network, x)
        assert fold_norms(network) == (32 if component == "unet" else 0)
        found["folded"] = tiled(component, network, x)
    distances = {name: distance(output, expected) for name, output in found.items()}
    with capsys.disabled():
        print(f"\n{component}: {', '.join(f'{name} {value:.1e}' for name, value in distances.items())}")
    assert max(distances.values()) < 1e-4


def test_vae_attention_can_be_quantized_too() -> None:
    vae, x = narrow("vae"), example("vae")
    expected = run("vae", vae, x)
    operand = {"bits": 8, "grid": "int_zero_point"}
    prepare(vae, QuantPlan.parse([{"op:attention *": dict.fromkeys(("query", "key", "map", "value"), operand)}]))
    assert sorted(row["name"].rpartition(".")[2] for row in layer_rows("vae", vae)) == sorted(2 * OPERANDS)
    set_state(vae, State.OFF)
    torch.testing.assert_close(run("vae", vae, x), expected, rtol=0, atol=1e-5)
