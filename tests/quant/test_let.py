"""The learnable equivalent transformation: numbers from PassionSR's code, and equality for any scale and offset."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import calibrate, named_quantizers, set_state
from basicsr_quant.quant.folding import fold_into_norm
from basicsr_quant.quant.layers.attention import QuantAttention
from basicsr_quant.quant.layers.conv2d import QuantConv2d
from basicsr_quant.quant.layers.linear import QuantLinear
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.let_scales import estimate_scales
from basicsr_quant.quant.quantizer import State
from basicsr_quant.quant.recipe import Recipe, Spec, TensorRecipe
from basicsr_quant.quant.recipe_parts import Let, Smooth, SplitIn

CASES = {
    "conv3x3_split": 8, "conv3x3_nosplit": 8, "conv3x3_s2_split6": 6, "conv1x1_nosplit6": 6, "conv3x3_oddC_split": 8,
    "linear3d_split": 8, "linear3d_nosplit": 8, "linear3d_nobias_split6": 6, "linear2d_split": 8,
}
BOUNDS = {"lower_bound": "x_min", "upper_bound": "x_max"}


def tensor_recipe(bits: int, per: str = "tensor") -> TensorRecipe:
    return TensorRecipe(bits, Spec("int_zero_point", {"zero_point_gradient": "detached"}), per)


def let_recipe(bits: int, split: bool = False, **options) -> Recipe:
    return Recipe(tensor_recipe(bits, "channel"), tensor_recipe(bits), tensor_recipe(bits),
                  split_in=SplitIn() if split else None, let=Let(**options))


def transformed(layer: nn.Linear | nn.Conv2d, recipe: Recipe | None = None, **options) -> QuantWeighted:
    maker = QuantConv2d if isinstance(layer, nn.Conv2d) else QuantLinear
    return maker.from_module(layer, recipe or Recipe(let=Let(**options)))


def attention_recipe(recipe: TensorRecipe | None, key_tokens: int | None = None, alpha: float = 0.3) -> Recipe:
    return Recipe(query=recipe, key=recipe, map=recipe, value=recipe, smooth=Smooth(alpha, key_tokens))


def plain_layer(record: dict[str, torch.Tensor], name: str) -> nn.Linear | nn.Conv2d:
    weight, bias = record["weight"], record.get("bias")
    layer: nn.Linear | nn.Conv2d
    if name.startswith("conv"):
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride=2 if "_s2" in name else 1,
                          padding=weight.shape[2] // 2, bias=bias is not None)
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return layer


def let_layer(record: dict[str, torch.Tensor], name: str, sign: str = "plus") -> QuantWeighted:
    recipe = let_recipe(CASES[name], "_split" in name, offset_sign=sign, vector_maximum="tensor")
    return transformed(plain_layer(record, name), recipe)


def recorded_name(name: str) -> str:
    """``activation_quantizer.parts.1.lower_bound`` -> ``act_quantizer_1.x_min``."""
    head, _, bound = name.rpartition(".")
    kind, _, part = head.replace("activation_quantizer", "act_quantizer").partition(".parts.")
    number = "" if kind == "bias_quantizer" else f"_{part or 0}"
    return f"{kind}{number}.{BOUNDS[bound]}"


def load_bounds(module: nn.Module, record: dict[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    bounds = {recorded_name(name): parameter for name, parameter in module.named_parameters()
              if name.rpartition(".")[2] in BOUNDS}
    with torch.no_grad():
        for name, parameter in bounds.items():
            parameter.copy_(record[name].reshape(parameter.shape))
    return bounds


@pytest.fixture(scope="module")
def layers(fixtures) -> dict[str, dict[str, torch.Tensor]]:
    records: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(fixtures / "passionsr" / "let_layers.safetensors").items():
        case, _, name = key.partition(".")
        records.setdefault(case, {})[name] = value
    assert set(records) == set(CASES)
    return records


@pytest.mark.parametrize("name", CASES)
def test_scales(layers, name: str) -> None:
    record = layers[name]
    layer = let_layer(record, name)
    set_state(layer, State.OFF)
    with estimate_scales(layer, momentum=0.9):
        output = layer(record["x"])
        torch.testing.assert_close(layer.let.scale.value, record["scale_init"].flatten(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(output, record["off_y_scale_only"], rtol=0, atol=4e-6)
        layer(record["x2"])
    torch.testing.assert_close(layer.let.scale.value, record["scale_after_ema"].flatten(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_without_rounding(layers, name: str) -> None:
    record = layers[name]
    for sign in ("minus", "plus"):
        layer = let_layer(record, name, sign)
        set_state(layer, State.OFF)
        with torch.no_grad():
            layer.let.scale.value.copy_(record["scale_after_ema"].flatten())
            layer.let.offset.copy_(record["offset"].flatten())
        expected = record["fp_out"] if sign == "minus" else record["off_y_scale_offset"]
        torch.testing.assert_close(layer(record["x"]), expected, rtol=0, atol=1.2e-5)
        layer.freeze()
        torch.testing.assert_close(layer(record["x"]), expected, rtol=0, atol=1.2e-5)


@pytest.mark.parametrize("name", CASES)
def test_rounded_output_and_gradients(layers, name: str) -> None:
    record = layers[name]
    layer = let_layer(record, name)
    bounds = load_bounds(layer, record)
    with torch.no_grad():
        layer.let.scale.value.copy_(record["scale_after_ema"].flatten())
        layer.let.offset.copy_(record["offset"].flatten())
    x = record["x"].clone().requires_grad_()
    output = layer(x)
    torch.testing.assert_close(output, record["q_y"], rtol=0, atol=1e-5)
    output.backward(record["q_grad_out"])
    tolerance = {"rtol": 1e-5, "atol": 3e-5}
    torch.testing.assert_close(x.grad, record["q_grad_x"], **tolerance)
    torch.testing.assert_close(layer.let.scale.value.grad, record["q_grad_scale"].flatten(), **tolerance)
    torch.testing.assert_close(layer.let.offset.grad, record["q_grad_offset"].flatten(), **tolerance)
    for key, parameter in bounds.items():
        quantizer, _, bound = key.rpartition(".")
        torch.testing.assert_close(parameter.grad, record[f"{quantizer}.grad_{bound}"].reshape(parameter.shape),
                                   **tolerance)


@pytest.mark.parametrize("bits", [6, 8])
@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_attention(fixtures, bits: int, kind: str) -> None:
    stored = load_file(fixtures / "passionsr" / "attention.safetensors")
    record = {key.removeprefix(f"b{bits}."): value for key, value in stored.items() if key.startswith(f"b{bits}.")}
    own = {key.removeprefix(f"{kind}."): value for key, value in record.items() if key.startswith(f"{kind}.")}
    x = record["x"]
    context = x if kind == "attn1" else record["ctx"]

    def project(name: str, value: torch.Tensor) -> torch.Tensor:
        part = {key.removeprefix(f"{name}."): tensor for key, tensor in own.items() if key.startswith(f"{name}.")}
        layer = transformed(plain_layer(part, "linear"), let_recipe(bits, split=True, offset_sign="plus"))
        load_bounds(layer, part)
        with torch.no_grad():
            layer.let.scale.value.copy_(part["scale_factor"].flatten())
            layer.let.offset.copy_(part["offset"].flatten())
        return layer(value)

    attention = QuantAttention(8, attention_recipe(tensor_recipe(bits), context.shape[1]))
    with torch.no_grad():
        attention.scale_qk.value.copy_(own["scale_factor_qk"])
        attention.scale_av.value.copy_(own["scale_factor_vw"])
        for quantizer, letter in zip((attention.query_quantizer, attention.key_quantizer, attention.value_quantizer,
                                      attention.map_quantizer), "qkvw", strict=True):
            quantizer.set_bounds(own[f"act_quantizer_{letter}.x_min"], own[f"act_quantizer_{letter}.x_max"])
    query, key, value = (project(name, tensor).unflatten(-1, (2, 8)).transpose(1, 2)
                         for name, tensor in (("to_q", x), ("to_k", context), ("to_v", context)))
    joined = attention.attend(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(project("to_out.0", joined), record[f"{kind}_y"], rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), kernel=st.sampled_from([1, 2, 3]), stride=st.integers(1, 2),
       groups=st.sampled_from([1, 2]), pad=st.sampled_from([0, 1, "same"]), bias=st.booleans(),
       padding=st.sampled_from(["zero_after", "transformed_zero"]))
def test_conv_is_equivalent(seed, kernel, stride, groups, pad, bias, padding) -> None:
    generator = torch.Generator().manual_seed(seed)
    plain = nn.Conv2d(4, 6, kernel, 1 if pad == "same" else stride, pad, groups=groups, bias=bias).double()
    layer = transformed(plain, padding=padding)
    x = randomised(layer, generator, 2, 4, 7, 6)
    expected = plain(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    layer.freeze()
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.booleans(), bias=st.booleans())
def test_linear_is_equivalent(seed, tokens, bias) -> None:
    plain = nn.Linear(5, 3, bias=bias).double()
    layer = transformed(plain)
    x = randomised(layer, torch.Generator().manual_seed(seed), *((2, 4, 5) if tokens else (2, 5)))
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.sampled_from([None, 7]))
def test_attention_is_equivalent(seed, tokens) -> None:
    generator = torch.Generator().manual_seed(seed)
    attention = QuantAttention(4, attention_recipe(None, tokens)).double()
    for parameter in attention.parameters():
        parameter.data.uniform_(0.2, 3, generator=generator)
    query, key, value = (torch.randn(2, 3, size, 4, dtype=torch.float64, generator=generator) for size in (5, 7, 7))
    expected = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention.attend(query, key, value), expected, rtol=1e-9, atol=1e-9)


def randomised(layer: QuantWeighted, generator: torch.Generator, *shape: int) -> torch.Tensor:
    with torch.no_grad():
        layer.let.scale.value.uniform_(0.1, 5, generator=generator)
        layer.let.offset.normal_(generator=generator)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_transformed_zero_rounds_what_it_pads() -> None:
    layer = transformed(nn.Conv2d(2, 3, 3, padding=1), let_recipe(8, padding="transformed_zero"))
    with torch.no_grad():
        layer.let.offset.fill_(5)
    seen: list[torch.Tensor] = []
    set_state(layer, State.OFF)
    layer.activation_quantizer.state, layer.activation_quantizer.watcher = State.OBSERVE, seen.append
    layer(torch.zeros(1, 2, 4, 4))
    assert seen[0].shape == (1, 2, 6, 6) and torch.equal(seen[0], torch.full_like(seen[0], -5))


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6)])
def test_norm_takes_the_transformation(norm) -> None:
    convolution = isinstance(norm, nn.GroupNorm)
    plain = nn.Conv2d(6, 4, 1) if convolution else nn.Linear(6, 4)
    layer = transformed(plain, let_recipe(8))
    x = torch.randn(2, 6, 5, 5) if convolution else torch.randn(2, 5, 6)
    randomised(layer, torch.Generator().manual_seed(3), 1)
    set_state(layer, State.OFF)
    expected = layer(norm(x))
    layer.freeze()
    fold_into_norm(norm, [layer])
    torch.testing.assert_close(layer(norm(x)), expected, rtol=0, atol=2e-5)


def test_folding_refuses_what_it_cannot_do() -> None:
    one, two = transformed(nn.Linear(4, 2)), transformed(nn.Linear(4, 2))
    with torch.no_grad():
        two.let.offset.fill_(1)
    with pytest.raises(UserError, match="tie them"):
        fold_into_norm(nn.LayerNorm(4), [one, two])
    with pytest.raises(UserError, match="without weight and bias"):
        fold_into_norm(nn.LayerNorm(4, elementwise_affine=False), [one])
    padded = transformed(nn.Conv2d(4, 2, 3, padding=1), padding="transformed_zero")
    with pytest.raises(UserError, match="transformed_zero"):
        fold_into_norm(nn.GroupNorm(2, 4), [padded])
    with pytest.raises(UserError, match="padding_mode 'reflect'"):
        transformed(nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(UserError, match="no equivalent transformation to fold"):
        fold_into_norm(nn.LayerNorm(4), [one, QuantLinear.from_module(nn.Linear(4, 2), Recipe())])


def test_scales_from_all_batches_do_not_depend_on_their_order() -> None:
    batches = [torch.randn(2, 4) * factor for factor in (1, 5, 2)]
    found = []
    for order in (batches, batches[::-1]):
        torch.manual_seed(0)
        layer = transformed(nn.Linear(4, 3))
        with estimate_scales(layer):
            for batch in order:
                layer(batch)
        found.append(layer.let.scale.value.detach())
    assert torch.equal(*found)
    expected = torch.cat(batches).abs().amax(0) ** 0.3 / layer.weight.detach().abs().amax(0) ** 0.3
    torch.testing.assert_close(found[0], expected)


def test_attention_scales_and_sizes() -> None:
    attention = QuantAttention(4, attention_recipe(None, 6, alpha=0.5))
    query, key, value = torch.randn(2, 5, 4), torch.randn(2, 6, 4) * 3, torch.randn(2, 6, 4)
    with estimate_scales(attention):
        attention.attend(query, key, value)
    torch.testing.assert_close(attention.scale_qk.value.detach(),
                               (key.abs().amax((0, 1)) / query.abs().amax((0, 1))) ** 0.5)
    balanced = (query * attention.scale_qk.value).abs().amax((0, 1))
    torch.testing.assert_close(balanced, (key / attention.scale_qk.value).abs().amax((0, 1)))
    with pytest.raises(UserError, match="calibrated for 6 key tokens, the input has 8"):
        attention.attend(query, torch.randn(2, 8, 4), torch.randn(2, 8, 4))


def test_scales_need_data() -> None:
    with pytest.raises(UserError, match="saw no data"), estimate_scales(transformed(nn.Linear(4, 3))):
        pass
    with pytest.raises(UserError, match="no equivalent transformation"), estimate_scales(nn.Linear(4, 3)):
        pass


def test_calibration_serves_let_layers() -> None:
    layer = transformed(nn.Conv2d(5, 4, 3, padding=1), let_recipe(8, split=True))
    model, x = nn.Sequential(layer), torch.randn(2, 5, 8, 8)
    with estimate_scales(model):
        set_state(model, State.OFF)
        plain = model(x)
    calibrate(model, [x])
    assert len(list(named_quantizers(model))) == 5
    parts = layer.activation_quantizer.parts
    inputs = layer.let(x, 1)
    torch.testing.assert_close(parts[1].upper_bound.detach().squeeze(), inputs[:, 2:].max().detach())
    assert float((model(x).detach() - plain.detach()).norm() / plain.detach().norm()) < 0.02


def test_split_at_a_channel() -> None:
    recipe = Recipe(activation=tensor_recipe(8), split_in=SplitIn(at=3, activation_axis=-1))
    layer = transformed(nn.Linear(8, 2), recipe)
    seen: list[torch.Tensor] = []
    for part in layer.activation_quantizer.parts:
        part.state, part.watcher = State.OBSERVE, seen.append
    layer(torch.randn(2, 5, 8))
    assert [tensor.shape[-1] for tensor in seen] == [3, 5]
