"""BIDiffSRUNet against the released network, and what a user can do with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from basicsr_quant.archs.bi_diffsr_unet import BIDiffSRUNet
from basicsr_quant.archs.diffusion_blocks import Step
from basicsr_quant.archs.published.bi_diffsr import check_groups, count_groups, export_bi_diffsr, import_bi_diffsr
from basicsr_quant.errors import UserError
from basicsr_quant.quant.binary.binarizers import bi_conv, bnn
from basicsr_quant.quant.binary.conv2d import binary_layers, frozen_binary_weights
from basicsr_quant.quant.binary.unit import BinaryUnit

TINY: dict[str, Any] = {"inner_channel": 8, "norm_groups": 4, "channel_mults": [1, 2], "res_blocks": 1,
                        "image_size": 16, "fp_res": [16], "dropout": 0.2, "dynamic_group": 3}


@pytest.fixture(scope="module")
def released(fixtures: Path) -> Callable[..., BIDiffSRUNet]:
    """Maker of the small network with recorded weights, in float64: (**options)."""
    path = fixtures / "bi_diffsr" / "small_unet_weights.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    state = import_bi_diffsr(load_file(path))

    def make(**options: Any) -> BIDiffSRUNet:
        network = BIDiffSRUNet(**{**config, **options})
        network.load_state_dict(state)
        return network.double().eval()

    return make


@pytest.fixture(scope="module")
def recorded(fixtures: Path) -> dict[str, Tensor]:
    return load_file(fixtures / "bi_diffsr" / "small_unet_io.safetensors")


def _inputs(recorded: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return recorded["x"].to(dtype), recorded["c"].to(dtype)


def _time(*timesteps: int) -> Tensor:
    return torch.tensor(timesteps).view(-1, 1)


def _tiny_inputs(batch: int = 2, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, condition = (torch.rand(batch, 3, side, side, generator=generator) for _ in range(2))
    return image, condition, torch.full((batch, 1), 700)


def _tiny(**options: Any) -> BIDiffSRUNet:
    torch.manual_seed(1)
    return BIDiffSRUNet(**{**TINY, **options})


@pytest.mark.parametrize("timestep", [0, 1, 666, 667, 1333, 1334, 1999])
@pytest.mark.parametrize("given", ["nothing", "number", "tensor"])
def test_released_outputs(released, recorded, timestep: int, given: str) -> None:
    network = released()
    number = network.group_of(timestep)
    group = {"nothing": None, "number": number, "tensor": torch.tensor([number])}
    with torch.no_grad():
        output = network(*_inputs(recorded), _time(timestep, timestep), group[given])
        torch.testing.assert_close(output, recorded[f"y.t{timestep}.f64"], rtol=0, atol=1e-10)
        output = network.float()(*_inputs(recorded, torch.float32), _time(timestep), group[given])
    torch.testing.assert_close(output, recorded[f"y.t{timestep}.f32"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), [(100, 1900), (1900, 100)])
def test_released_network_takes_the_group_of_the_first_sample(released, recorded, first: int, second: int) -> None:
    x, condition = _inputs(recorded)
    with torch.no_grad():
        output = released()(x, condition, _time(first, second))
        torch.testing.assert_close(output, recorded[f"y.mixed_{first}_{second}.f64"], rtol=0, atol=1e-10)
        corrected = released(group_choice="per_sample")
        mixed = corrected(x, condition, _time(first, second))
        alone = [corrected(x[index:index + 1], condition[index:index + 1], _time(timestep))
                 for index, timestep in enumerate((first, second))]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=0, atol=1e-10)
    assert not torch.allclose(mixed, output)


@pytest.mark.parametrize("timestep", [100, 1000, 1900])
@pytest.mark.parametrize("given", [True, False])
def test_released_gradients(released, recorded, fixtures: Path, timestep: int, given: bool) -> None:
    norms = json.loads((fixtures / "bi_diffsr" / "small_unet_gradnorms.json").read_text())[str(timestep)]
    network = released()
    group = network.group_of(timestep) if given else None
    output = network(*_inputs(recorded), _time(timestep, timestep), group)
    loss = (output - recorded["target"].double()).abs().mean()
    loss.backward()
    torch.testing.assert_close(loss.detach().view(1), recorded[f"loss.t{timestep}.f64"].double(), rtol=0, atol=1e-10)
    ours = import_bi_diffsr({name: torch.empty(1, 1) for name in norms})
    names = dict(zip(ours, norms, strict=True))
    gradients = {names[name]: parameter.grad for name, parameter in network.named_parameters()}
    assert set(gradients) == set(norms) and sum(norm is None for norm in norms.values()) == 160
    for name, norm in norms.items():
        if norm is not None:
            assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-9, abs=1e-12), name
        elif given:
            assert gradients[name] is None
        else:
            assert not gradients[name].any()


def test_exported_keys_equal_the_published_network(fixtures: Path) -> None:
    published = json.loads((fixtures / "bi_diffsr" / "unet_keys.json").read_text())
    with torch.device("meta"):
        network = BIDiffSRUNet()
    exported = export_bi_diffsr(network.state_dict())
    assert {name: list(tensor.shape) for name, tensor in exported.items()} == published
    assert list(exported) == list(published) and len(exported) == 1371
    assert set(dict(network.named_parameters())) == set(network.state_dict())
    assert len(list(binary_layers(network))) == 56
    again = import_bi_diffsr({f"module.{name}": tensor for name, tensor in exported.items()})
    assert {name: tensor.shape for name, tensor in again.items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()}


def test_weights_survive_the_border(fixtures: Path) -> None:
    state = load_file(fixtures / "bi_diffsr" / "small_unet_weights.safetensors")
    exported = export_bi_diffsr(import_bi_diffsr(state))
    assert set(exported) == set(state) and all(torch.equal(exported[name], state[name]) for name in state)


def test_another_number_of_groups_is_named() -> None:
    states = {groups: _tiny(dynamic_group=groups).state_dict() for groups in (1, 3, 5)}
    assert count_groups(states[5]) == {"shift": 5, "activation": 5}
    check_groups(states[5], states[5], "file.pth")
    check_groups(_tiny(binarizer=bnn()).state_dict(), states[5], "file.pth")
    for stored, wanted in ((5, 3), (1, 3)):
        with pytest.raises(UserError, match=f"network_g:dynamic_group={stored}") as raised:
            check_groups(states[stored], states[wanted], "file.pth")
        assert "\n" not in str(raised.value) and str(raised.value).startswith("file.pth: ")
    inside = _tiny(timestep_aware="in").state_dict()
    assert count_groups(inside) == {"shift": 3, "activation": 1}
    with pytest.raises(UserError, match="3 before the sign and 1 behind"):
        check_groups(inside, states[3], "file.pth")


def test_clean_form_equals_the_training_form(released, recorded) -> None:
    network = released().float()
    inputs = (*_inputs(recorded, torch.float32), _time(100, 1900))
    training = network(*inputs)
    assert training.requires_grad
    with torch.inference_mode(), frozen_binary_weights(network):
        torch.testing.assert_close(network(*inputs), training.detach(), rtol=0, atol=1e-6)
        assert all(layer.frozen_weight is not None for _, layer in binary_layers(network))
    assert all(layer.frozen_weight is None for _, layer in binary_layers(network))


@pytest.mark.parametrize("options", [
    {}, {"group_choice": "per_sample"}, {"sign_zero": "plus_one"}, {"timestep_aware": "in"}, {"timestep_aware": "out"},
    {"timestep_aware": "none"}, {"resampling": "plain"}, {"fusion": "split"}, {"fusion": "concat"}, {"fusion": "add"},
    {"binarizer": bnn()}, {"binarizer": bi_conv(identity=False)}, {"attn_res": [8, 16]}, {"fp_res": []}])
def test_every_variant_learns(options: dict[str, Any]) -> None:
    network = _tiny(**options).train()
    image, condition, time = _tiny_inputs()
    output = network(image, condition, time, 1, torch.rand(2, network.residual_blocks))
    assert output.shape == (2, 3, 16, 16)
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        used = ".members." not in name or ".members.1." in name or ".members.2." not in name
        if used and not (".members.0." in name and name.replace(".members.0.", ".members.1.") in network.state_dict()):
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    levels = [parameter for name, parameter in network.named_parameters() if name.startswith("ups.") and "qkv" in name]
    assert len(levels) == (4 if options.get("attn_res") else 0)


def test_full_precision_levels_are_the_decoders() -> None:
    def binary_stages(network: BIDiffSRUNet) -> set[str]:
        return {".".join(name.split(".")[:2]) for name, module in network.named_modules()
                if isinstance(module, BinaryUnit)}

    assert binary_stages(_tiny()) == {"downs.1", "downs.2", "downs.3", "mid.0", "mid.1", "ups.0", "ups.1", "ups.2",
                                      "ups.3", "ups.4"}
    assert binary_stages(_tiny(fp_res=[])) >= {"ups.5", "ups.6", "ups.7", "ups.8"}
    assert not binary_stages(_tiny(fp_res=[8, 16])) & {"ups.0", "ups.1", "ups.2", "ups.3"}


def test_condition_comes_first_and_may_be_absent() -> None:
    network = _tiny(dropout=0).eval()
    image, condition, time = _tiny_inputs()
    seen: list[Tensor] = []
    network.downs[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(image, condition, time)
    assert torch.equal(seen[0], torch.cat([condition, image], 1))
    alone = _tiny(in_channel=3, dropout=0).eval()
    assert torch.equal(alone(image, condition, time), alone(image, image, time))


def test_dropout_follows_the_draws_of_each_sample() -> None:
    network = _tiny(group_choice="per_sample").double().train()
    assert network.training_draws(2) == {"dropout_draws": (network.residual_blocks,)}
    assert network.residual_blocks == 2 + 2 + 4 and _tiny(dropout=0.0).training_draws(2) == {}
    image, condition, _ = (tensor.double() for tensor in _tiny_inputs())
    time, draws = _time(100, 1900), torch.rand(2, 8)
    together = network(image, condition, time, None, draws)
    apart = [network(image[index:index + 1], condition[index:index + 1], time[index:index + 1], None,
                     draws[index:index + 1]) for index in range(2)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-10)
    assert not torch.allclose(together, network(image, condition, time, None, 1 - draws))
    assert not torch.equal(network(image, condition, time), network(image, condition, time))
    network.eval()
    assert torch.equal(network(image, condition, time, None, draws), network(image, condition, time))


def test_gradients_of_a_batch_are_the_mean_of_its_samples() -> None:
    """Also right after initialization, where many sums of signs are zero and lie on the kink of an RPReLU."""
    network = _tiny(group_choice="per_sample").double().train()
    image, condition, _ = (tensor.double() for tensor in _tiny_inputs(4))
    time, draws = _time(100, 1900, 1000, 50), torch.rand(4, network.residual_blocks)
    network(image, condition, time, None, draws).abs().mean().backward()
    together = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad()
    for index in range(4):
        part = slice(index, index + 1)
        (network(image[part], condition[part], time[part], None, draws[part]).abs().mean() / 4).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=0, atol=1e-9)


def test_dropped_elements_are_zeros_before_the_binary_unit() -> None:
    block = _tiny(dropout=0.5).train().downs[1].block2
    seen: list[Tensor] = []
    block.conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block(torch.randn(2, 8, 16, 16), Step(torch.empty(0), 0, torch.rand(2, 8)))
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("group", [None, 1])
def test_compiles_as_one_graph(group: int | None) -> None:
    network = _tiny().train()
    image, condition, time = _tiny_inputs()
    draws = torch.rand(2, network.residual_blocks)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    results = []
    for run in (network, compiled):
        network.zero_grad()
        output = run(image, condition, time, group, draws)
        output.square().mean().backward()
        results.append((output.detach(), network.downs[1].block1.conv.binary.weight.grad.clone()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_trains() -> None:
    network = _tiny().train()
    image, condition, time = _tiny_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(image, condition, time, 1, torch.rand(2, network.residual_blocks))
    output.float().square().mean().backward()
    for name, parameter in network.named_parameters():
        if ".members." not in name or ".members.1." in name:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_channels_last_gives_the_same() -> None:
    network = _tiny().double().eval()
    image, condition, time = (tensor.double() for tensor in _tiny_inputs())
    with torch.no_grad():
        expected = network(image, condition, time)
        network = network.to(memory_format=torch.channels_last)
        image, condition = (tensor.to(memory_format=torch.channels_last) for tensor in (image, condition))
        torch.testing.assert_close(network(image, condition, time), expected, rtol=0, atol=1e-10)


def test_sizes_off_the_grid_are_one_line() -> None:
    with torch.device("meta"):
        network = BIDiffSRUNet()
        assert network.window_multiple == network.minimum_size == 8
        image = torch.empty(2, 3, 8, 24)
        assert network(image, image, torch.zeros(2, 1).long()).shape == image.shape
        for height, width in ((4, 8), (12, 16), (0, 8)):
            image = torch.empty(1, 3, height, width)
            with pytest.raises(UserError, match="multiples of 8, at least 8") as raised:
                network(image, image, torch.zeros(1, 1).long())
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [
    {"channel_mults": [1, 3]}, {"norm_groups": 3}, {"in_channel": 4}, {"dynamic_group": 0}, {"total_step": 2}])
def test_meaningless_options_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="BIDiffSRUNet: ") as raised:
        _tiny(**options)
    assert "\n" not in str(raised.value)
