from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from basicsr_quant.archs.padding import pad_to_multiple, run_padded
from basicsr_quant.archs.published.swinir import import_swinir
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.errors import UserError
from basicsr_quant.quant.operand import Operand

TINY: dict[str, Any] = {"upscale": 2, "img_size": 32, "depths": [2, 2], "embed_dim": 24, "num_heads": [3, 3]}


def _small(**changes: Any) -> SwinIR:
    torch.manual_seed(1)
    return SwinIR(**{**TINY, "embed_dim": 12, **changes})


@pytest.fixture(scope="module")
def recorded(fixtures: Path) -> dict[str, Tensor]:
    return load_file(fixtures / "2dquant" / "tiny_swinir_fp.safetensors")


@pytest.fixture(scope="module")
def tiny(recorded: dict[str, Tensor]) -> SwinIR:
    network = SwinIR(**TINY)
    weights = {name.removeprefix("weights."): value for name, value in recorded.items() if name.startswith("weights.")}
    network.load_state_dict(import_swinir(weights), strict=True)
    return network.eval()


def test_outputs_and_features_equal_the_published_network(tiny: SwinIR, recorded: dict[str, Tensor]) -> None:
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: features.__setitem__(name, output)

    wanted = {name: module for name, module in tiny.named_modules() if f"feat.{name}" in recorded}
    hooks = [module.register_forward_hook(keep(name)) for name, module in wanted.items()]
    with torch.no_grad():
        output = tiny(recorded["input_padded"])
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(output, recorded["output_padded"], rtol=0, atol=2e-5)
    assert len(features) == 6
    for name, value in features.items():
        torch.testing.assert_close(value, recorded[f"feat.{name}"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_any_size_equals_padding_outside(tiny: SwinIR, recorded: dict[str, Tensor]) -> None:
    image = recorded["input"]
    torch.testing.assert_close(pad_to_multiple(image, 8), recorded["input_padded"], rtol=0, atol=0)
    torch.testing.assert_close(tiny(image), recorded["output"], rtol=0, atol=2e-5)
    torch.testing.assert_close(run_padded(tiny, image, 2, tiny.window_multiple), recorded["output"], rtol=0, atol=2e-5)
    torch.testing.assert_close(tiny(recorded["cali_lq"]), recorded["cali_output_fp"], rtol=0, atol=2e-5)
    for height, width in ((1, 1), (3, 21), (8, 9), (17, 5)):
        assert tiny(torch.rand(1, 3, height, width)).shape == (1, 3, 2 * height, 2 * width)


@torch.no_grad()
def test_float64_agrees_with_float32(recorded: dict[str, Tensor], tiny: SwinIR) -> None:
    network = SwinIR(**TINY)
    network.load_state_dict(tiny.state_dict())
    output = network.double().eval()(recorded["input_padded"].double())
    assert output.dtype == torch.float64
    torch.testing.assert_close(output.float(), recorded["output_padded"], rtol=0, atol=2e-5)


@torch.no_grad()
def test_images_of_a_batch_do_not_touch_each_other(tiny: SwinIR) -> None:
    images = torch.rand(5, 3, 24, 16, generator=torch.Generator().manual_seed(3))
    one_by_one = torch.cat([tiny(image[None]) for image in images])
    torch.testing.assert_close(tiny(images), one_by_one, rtol=0, atol=1e-5)


def _recorded_draws(fixtures: Path, rates: tuple[float, ...], batch: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return draws that lead to the keep decisions of the recorded run, and these decisions by name."""
    with safe_open(fixtures / "2dquant" / "tiny_swinir_quant.safetensors", "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name.endswith(".keep")}  # noqa: SIM118
    draws = torch.full((batch, 2 * len(rates)), 0.5)
    for name, keep in kept.items():
        layer, block = (int(part) for part in name.split(".") if part.isdigit())
        column = 2 * (2 * layer + block) + int(name.split("call")[1][0])
        draws[:, column] = keep.reshape(-1).float() * 0.9 + rates[column // 2] / 2
    return draws.clamp(max=0.999), kept


def test_injected_draws_reproduce_the_recorded_decisions(
    tiny: SwinIR, recorded: dict[str, Tensor], fixtures: Path
) -> None:
    images = recorded["cali_lq"]
    draws, kept = _recorded_draws(fixtures, tiny.drop_path_rates, len(images))
    tiny.train()
    factors = tiny._branch_factors(torch.zeros(len(images), 1), draws)
    assert factors[0] is None
    for name, keep in kept.items():
        layer, block = (int(part) for part in name.split(".") if part.isdigit())
        factor, rate = factors[2 * layer + block], tiny.drop_path_rates[2 * layer + block]
        assert factor is not None
        torch.testing.assert_close(factor[:, int(name.split("call")[1][0])], keep.reshape(-1).float() / (1 - rate))
    with torch.no_grad():
        first, second = tiny(images, draws), tiny(images, draws)
        without = tiny(images)
    tiny.eval()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert any((keep == 0).any() for keep in kept.values())
    assert (first - recorded["cali_output_fp"]).abs().max() > 1e-3
    assert torch.isfinite(without).all()
    torch.testing.assert_close(tiny(images, draws), tiny(images), rtol=0, atol=0)


def test_a_dropped_branch_leaves_the_tokens_alone() -> None:
    network = _small(drop_path_rate=1 - 1e-9).train()
    tokens = torch.rand(2, 64, 12)
    block = network.layers[1].residual_group.blocks[1]
    untouched = block(tokens, (8, 8), torch.zeros(1, 64, 64), torch.zeros(2, 2))
    torch.testing.assert_close(untouched, tokens)
    attention_only = block(tokens, (8, 8), torch.zeros(1, 64, 64), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    mlp_only = tokens[1] + block.mlp(block.norm2(tokens[1:]))[0]
    torch.testing.assert_close(attention_only[1], mlp_only)


def test_training_draws_and_masks_follow_the_rate() -> None:
    assert _small().training_draws(7) == {"drop_path_draws": (8,)}
    assert _small(drop_path_rate=0.0).training_draws(7) == {}
    rates = _small(drop_path_rate=0.3).drop_path_rates
    assert rates == pytest.approx((0.0, 0.1, 0.2, 0.3))
    steady = _small(drop_path_rate=0.0)
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(steady.train()(image), steady.eval()(image))


def test_nothing_but_parameters_in_the_state_dict(fixtures: Path) -> None:
    published = json.loads((fixtures / "2dquant" / "swinir_light_keys_x4.json").read_text())
    with torch.device("meta"):
        network = SwinIR(4)
    state = network.state_dict()
    assert set(state) == {name for name in published if not name.endswith(("attn_mask", "relative_position_index"))}
    assert set(state) == {name for name, _ in network.named_parameters()}
    assert all(list(state[name].shape) == published[name] for name in state)
    assert network(torch.empty(2, 3, 64, 40, device="meta")).shape == (2, 3, 256, 160)


def test_operands_see_what_is_multiplied(tiny: SwinIR, recorded: dict[str, Tensor]) -> None:
    attention = tiny.layers[0].residual_group.blocks[1].attn
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    hooks = []
    for name in ("query", "key", "value", "attention_map"):
        operand = attention.get_submodule(name)
        assert isinstance(operand, Operand)
        hooks.append(operand.register_forward_hook(keep(name)))
    inputs: list[Tensor] = []
    hooks.append(attention.qkv.register_forward_hook(lambda module, given, output: inputs.append(output)))
    with torch.no_grad():
        tiny(recorded["input_padded"])
    for hook in hooks:
        hook.remove()
    query, key, value = inputs[0].view(20, 64, 3, 3, 8).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(seen["query"], query * 8**-0.5)
    torch.testing.assert_close(seen["key"], key)
    torch.testing.assert_close(seen["value"], value)
    assert seen["attention_map"].shape == (20, 3, 64, 64)
    torch.testing.assert_close(seen["attention_map"].sum(-1), torch.ones(20, 3, 64))


@pytest.mark.parametrize(("upsampler", "scale"), [
    ("pixelshuffledirect", 3), ("pixelshuffle", 2), ("pixelshuffle", 3), ("pixelshuffle", 4), ("pixelshuffle", 8),
    ("nearest+conv", 2), ("nearest+conv", 4),
])
@pytest.mark.parametrize("connection", ["1conv", "3conv"])
def test_family_has_the_names_and_outputs_of_basicsr(upsampler: str, scale: int, connection: str) -> None:
    from basicsr_quant.archs.build import build_network

    if upsampler == "nearest+conv" and scale == 2:
        assert "conv_up2.weight" not in _small(upscale=2, upsampler=upsampler).state_dict()
        return
    options = {**TINY, "upscale": scale, "embed_dim": 12, "upsampler": upsampler, "resi_connection": connection}
    torch.manual_seed(5)
    theirs = build_network("basicsr:SwinIR", {**options, "window_size": 8, "mlp_ratio": 2.0}).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    ours = SwinIR(**options).eval()
    ours.load_state_dict(import_swinir(theirs.state_dict()), strict=True)
    image = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.double()(image)
        torch.testing.assert_close(ours.double()(image), expected, rtol=1e-6, atol=1e-6 * float(expected.std()))


@pytest.mark.parametrize("change", [
    {"upsampler": "bilinear"}, {"resi_connection": "2conv"}, {"num_heads": [5, 5]}, {"num_heads": [3]},
    {"upsampler": "nearest+conv", "upscale": 3}, {"upsampler": "pixelshuffle", "upscale": 6},
])
def test_meaningless_options_are_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(UserError) as raised:
        _small(**change)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_reach_every_parameter(precision: torch.dtype) -> None:
    network = _small().train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        output = network(torch.rand(2, 3, 16, 16), torch.full((2, 8), 0.5))
    output.float().square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_gradients_equal_finite_differences() -> None:
    network = _small(depths=[2], num_heads=[2], embed_dim=4, img_size=16, window_size=2).double().eval()
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (image,), fast_mode=True)


def test_compiled_graph_serves_any_batch() -> None:
    network = _small(depths=[2], num_heads=[2]).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=True)
    for batch in (3, 2):
        image = torch.rand(batch, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(compiled(image), network(image), rtol=0, atol=1e-5)


def test_copies_do_not_share(tiny: SwinIR) -> None:
    import copy

    other = copy.deepcopy(tiny)
    nn.init.zeros_(other.conv_first.weight)
    assert tiny.conv_first.weight.abs().sum() > 0
