"""Which layers OSEDiff trains at low rank, and the way from peft's factors to plain weights and back."""

from __future__ import annotations

import csv

import pytest
import torch

from basicsr_quant.archs.osediff import build_unet, build_vae, sd_unet, sd_vae
from basicsr_quant.archs.osediff_lora import (
    add_lora,
    has_lora,
    load_trained_state,
    merged_state,
    trained_state,
    unet_layers,
    vae_layers,
)
from basicsr_quant.archs.published.osediff import import_osediff
from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError

load_torchvision()
pytest.importorskip("diffusers")
pytest.importorskip("peft")


def small_unet() -> torch.nn.Module:
    return sd_unet((8, 16), 1, 1, (1, 2), 8, 4, 4)


def small_vae() -> torch.nn.Module:
    return sd_vae((8, 16), 1, 4, 4, 1.0)


@pytest.mark.parametrize(("component", "build", "layers"),
                         [("unet", build_unet, unet_layers), ("vae", build_vae, vae_layers)])
def test_layers_are_the_published_ones(fixtures, component, build, layers) -> None:
    with torch.device("meta"):
        found = {name: adapter for adapter, names in layers(build()).items() for name in names}
    with open(fixtures / "passionsr" / "passionsr_layers.csv", newline="") as file:
        expected = {row["diffusers_name"]: row["lora_adapter"] for row in csv.DictReader(file)
                    if row["component"] == component and row["lora_adapter"]}
    assert found == expected


def test_published_numbers_of_parameters() -> None:
    """Rank 4: 4,055,712 in the UNet, of three adapters, and 369,356 in the VAE."""
    with torch.device("meta"):
        unet, vae = build_unet(), build_vae()
    counts = {}
    for network, layers in ((unet, unet_layers(unet)), (vae, vae_layers(vae))):
        for adapter, names in layers.items():
            shapes = [network.get_submodule(name).weight.shape for name in names]
            counts[len(counts), adapter] = sum(4 * (shape[1:].numel() + shape[0]) for shape in shapes)
    assert counts == {(0, "default_encoder"): 1_253_776, (1, "default_decoder"): 2_425_104,
                      (2, "default_others"): 376_832, (3, "default_encoder"): 369_356}


def test_factors_learn_and_merge() -> None:
    torch.manual_seed(0)
    unet = small_unet().eval()
    plain = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    inputs = (torch.randn(1, 4, 8, 8), 999, torch.randn(1, 3, 8))
    with torch.no_grad():
        before = unet(*inputs).sample
        factors = add_lora(unet, unet_layers(unet), 4, 8, 3, "unet")
        torch.testing.assert_close(unet(*inputs).sample, before)
    names = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert len(names) == len(factors) and all("lora_" in name for name in names)
    assert {name.split(".")[-2] for name in names} == {"default_encoder", "default_decoder", "default_others"}
    unet(*inputs).sample.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0
               for name, parameter in unet.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        for parameter in factors:
            parameter.add_(0.02 * torch.randn_like(parameter))
        unet.conv_in.base_layer.weight.add_(0.1)
        after = unet(*inputs).sample
    assert not torch.allclose(after, before, atol=1e-3)
    copy = small_unet().eval()
    copy.load_state_dict(merged_state(unet))
    with torch.no_grad():
        torch.testing.assert_close(copy(*inputs).sample, after, rtol=1e-4, atol=1e-4)
    checkpoint = {"state_dict_unet": trained_state(unet, True), "state_dict_vae": {}, "rank_unet": 4, "rank_vae": 4}
    imported, _ = import_osediff(checkpoint, plain, {})
    copy.load_state_dict(imported)
    with torch.no_grad():
        torch.testing.assert_close(copy(*inputs).sample, after, rtol=1e-4, atol=1e-4)


def test_draws_depend_on_the_seed_alone() -> None:
    states = []
    for seed, noise in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(0)
        vae = small_vae()
        torch.manual_seed(noise)
        add_lora(vae, vae_layers(vae), 2, 8, seed, "vae")
        states.append(trained_state(vae, False))
    first = states[0]["encoder.conv_in.lora_A.default_encoder.weight"]
    assert first.shape == (2, 3, 3, 3)
    assert torch.equal(first, states[1]["encoder.conv_in.lora_A.default_encoder.weight"])
    assert not torch.equal(first, states[2]["encoder.conv_in.lora_A.default_encoder.weight"])
    assert not any(name.startswith("decoder") for name in states[0])


def test_states_that_do_not_fit_are_refused() -> None:
    vae = small_vae()
    assert not has_lora(vae)
    add_lora(vae, vae_layers(vae), 2, 8, 0, "vae")
    assert has_lora(vae)
    state = trained_state(vae, False)
    load_trained_state(vae, state, False, "file")
    state["extra.lora_A.default_encoder.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match="'extra.lora_A.default_encoder.weight' is unknown"):
        load_trained_state(vae, state, False, "file")
