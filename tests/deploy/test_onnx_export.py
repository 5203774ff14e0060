"""ONNX graphs: codes stay codes, roundings agree to the bit, and what cannot be exported is refused in one line."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_workshop import diffusion_options, diffusion_test_options
from torch import nn
from torch.nn import functional
from workshop import NETWORK, Workshop, test_options

from basicsr_quant.archs.build import build_network
from basicsr_quant.cli.main import main
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.onnx.export import export
from basicsr_quant.deploy.onnx.table import handlers
from basicsr_quant.deploy.pack import pack
from basicsr_quant.errors import UserError
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.binary.activations import SignActivation
from basicsr_quant.quant.binary.conv2d import BinaryConv2d
from basicsr_quant.quant.binary.slopes import ClippedSlope
from basicsr_quant.quant.binary.weights import WeightBinarizer
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.registry import MODELS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE = (9, 10)


def swinir() -> nn.Module:
    torch.manual_seed(0)
    return build_network("SwinIR", {key: value for key, value in NETWORK.items() if key != "type"}).eval()


def quantized(network: nn.Module, plan: list[dict[str, Any]], **example: torch.Tensor) -> nn.Module:
    """Calibrate and freeze a network by a plan."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    prepared = prepare(network.eval(), QuantPlan.parse(plan), **example).eval()
    calibrate(prepared, [torch.rand(2, 3, 8, 8)])
    return freeze(prepared)


def layers(bits: int, grid: str, per: str) -> dict[str, Any]:
    return {"weight": {"bits": bits, "grid": grid, "per": per}, "activation": {"bits": bits, "grid": grid}}


def attention_plan(bits: int, grid: str, per: str) -> list[dict[str, Any]]:
    recipe = layers(bits, grid, per)
    return [{"*.qkv": {"split_out": 3, **recipe}}, {"*.proj": recipe}, {"*.fc?": recipe},
            {"*.attn.*": {"activation": recipe["activation"]}}]


def stored(data: bytes) -> dict[str, Any]:
    """Name -> constant of a model."""
    return {tensor.name: tensor for tensor in onnx.load_from_string(data).graph.initializer}


@pytest.mark.parametrize(("bits", "grid", "per", "kind"), [
    (4, "float_offset", "tensor", "UINT4"), (8, "float_offset", "tensor", "UINT8"),
    (3, "symmetric_step", "channel", "UINT4"), (8, "symmetric_step", "tensor", "UINT8")])
def test_swinir(bits: int, grid: str, per: str, kind: str) -> None:
    frozen = quantized(swinir(), attention_plan(bits, grid, per))
    data, agreement = export(frozen, 2, (1, 3, *SIZE), {"scale": "2"})
    assert agreement.roundings == 20 and agreement.error < 1e-5 and agreement.drift < 0.1
    codes = [tensor for name, tensor in stored(data).items() if name.endswith("weight_codes")]
    assert len(codes) == 12 and {tensor.data_type for tensor in codes} == {getattr(onnx.TensorProto, kind)}
    model = onnx.load_from_string(data)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["QuantizeLinear"] == 20 and counts["DequantizeLinear"] == 20 + 12
    assert {entry.key: entry.value for entry in model.metadata_props} == {"scale": "2"}


def test_another_shape_fails() -> None:
    data, _ = export(freeze(convolutions()), 2, (1, 3, *SIZE))
    session = onnxruntime.InferenceSession(data)
    assert session.run(None, {"image": np.zeros((1, 3, *SIZE), np.float32)})[0].shape == (1, 3, 18, 20)
    for shape in ((1, 3, 10, 10), (1, 3, 9, 8), (2, 3, 9, 10), (1, 1, 9, 10)):
        with pytest.raises(Exception, match="invalid dimensions"):
            session.run(None, {"image": np.zeros(shape, np.float32)})


def convolutions() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(6, 6, 4, padding="same", groups=2),
                         nn.PReLU(6), nn.Conv2d(6, 12, 3, padding=2, dilation=2), nn.PixelShuffle(2))


def test_convolutions_at_several_widths_and_a_batch() -> None:
    low, split = layers(2, "float_offset", "channel"), layers(6, "float_offset", "tensor")
    frozen = quantized(convolutions(), [
        {"0": {**split, "split_in": {"at": 1, "activation_axis": 1}}},
        {"2": {**low, "bias": {"bits": 5}}},
        {"4": {**layers(8, "symmetric_step", "channel"), "let": {}}}])
    data, agreement = export(frozen, 2, (2, 3, 8, 7))
    assert agreement.roundings == 4 and agreement.drift < 1e-3
    assert {"2.weight_codes", "2.bias_codes", "4.weight_codes", "0.weight.0.codes", "0.weight.1.codes"} <= set(
        stored(data))
    assert export(quantized(convolutions(), [{"2": low}]), 2, (1, 3, 8, 8))[0] == export(
        quantized(convolutions(), [{"2": low}]), 2, (1, 3, 8, 8))[0]


class ForeignAttention(nn.Module):
    """A network whose products are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(image).flatten(2).transpose(1, 2)
        weights = torch.softmax(tokens @ tokens.transpose(1, 2) / 3, -1)
        return image + self.head((weights @ tokens).transpose(1, 2).unflatten(2, image.shape[2:]))


def test_operations_of_a_foreign_network() -> None:
    side = {"bits": 4}
    frozen = quantized(ForeignAttention(), [{"op:matmul *": {"lhs": side, "rhs": side}}],
                       example_input=torch.zeros(1, 3, 8, 8))
    assert export(frozen, 1, (1, 3, 5, 6))[1].roundings == 4


class Positions(nn.Module):
    """A network that rounds something which does not depend on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.grow = nn.Linear(2, 3), nn.Upsample(scale_factor=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij"), -1)
        return self.grow(image + self.place(places).permute(2, 0, 1))


def test_a_rounded_constant() -> None:
    network = prepare(Positions().eval(), QuantPlan.parse([{"place": layers(4, "float_offset", "tensor")}])).eval()
    calibrate(network, [torch.rand(1, 3, 4, 5)])
    assert export(freeze(network), 2, (1, 3, 4, 5))[1].roundings == 1


class Everything(nn.Module):
    """Uses each operator that is exported and that the other networks of this file leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(3, 8, 3, 2, padding="valid")
        self.norm, self.bare = nn.BatchNorm2d(8).eval(), nn.LayerNorm(8, elementwise_affine=False)
        self.table = nn.Parameter(torch.randn(9, 8))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.narrow(functional.pad(image, (2, 1, 1, 2), mode="reflect")))
        x = functional.silu(x) + functional.gelu(x, approximate="tanh") - torch.tanh(x) * x.abs().sqrt()
        x = x.clamp_min(-3).clamp(max=5) + functional.hardtanh(x) + (1 - x).exp().clamp(0, 2) + functional.relu6(x)
        x = x * x.mean((2, 3), keepdim=True) + x.sum(1, keepdim=True) / (x.var((1, 2), keepdim=True) + 1).rsqrt()
        x = torch.cat([*x.split([3, 5], 1)], 1) + torch.stack(x.chunk(2, 1), 2).flatten(1, 2)
        x = functional.normalize(x, dim=1).pow(2) + x.sigmoid().to(torch.float64).to(torch.float32)
        x = functional.avg_pool2d(x, 2, 1, 1) + functional.max_pool2d(x, 2, 1, 1) * functional.adaptive_avg_pool2d(x, 1)
        x = torch.add(x, x.flip(2, 3), alpha=0.5).roll((1, -2), (2, 3))[..., 1:, :-1].repeat(1, 1, 2, 1)[:, :, ::2]
        tokens = self.bare(x.flatten(2).transpose(1, 2)) + self.table[4] - x.select(2, 1).squeeze().mean()
        first, second = tokens.unbind(0)[0].narrow(0, 0, 4).t().unsqueeze(0).expand(2, -1, -1).unbind(0)
        x = x + torch.bmm(first[None], second.t()[None]).sum((1, 2), keepdim=True)[..., None]
        x = functional.pixel_unshuffle(functional.interpolate(x, scale_factor=2, mode="nearest"), 2)[:, :3]
        wide = functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
        return wide + functional.pad(x.mean((2, 3), keepdim=True).expand_as(image), (0, 8, 0, 7), value=0.5)


def test_every_operator_agrees_with_onnxruntime() -> None:
    torch.manual_seed(2)
    _, agreement = export(freeze(Everything().eval()), 2, (1, 3, 7, 8))
    assert agreement.roundings == 0 and agreement.error < 1e-5


def refused(network: nn.Module, message: str, shape: tuple[int, int, int, int] = (1, 3, 8, 8)) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export(network, 1, shape)
    assert "\n" not in str(caught.value)


def test_grids_and_layers_that_onnx_lacks_are_refused() -> None:
    refused(quantized(convolutions(), [{"0": layers(8, "int_zero_point", "tensor")}]),
            "'0.weight_quantizer' is rounded on the grid int_zero_point")
    signs = BinaryConv2d(3, 3, 3, WeightBinarizer(ClippedSlope(), "channel", "zero"),
                         SignActivation(ClippedSlope(), "zero"))
    refused(freeze(nn.Sequential(signs)), "'0' is a binary convolution")
    frozen = quantized(convolutions(), [{"0": layers(8, "float_offset", "tensor")}])
    with torch.no_grad():
        frozen[0].activation_quantizer.upper_bound.fill_(-1)  # type: ignore[index, union-attr]
    refused(frozen, "equal or crossed")


class Unknown(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.cumsum(1)


def test_networks_that_cannot_be_recorded_are_refused() -> None:
    refused(Unknown(), r"calls torch's 'aten.cumsum.default'")
    refused(nn.AdaptiveAvgPool2d(2), "in a way that is not exported")


def test_a_wrong_graph_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(handlers(), "softmax", lambda graph, out, x, *rest: graph.add("Softmax", x.name, axis=0))
    refused(quantized(swinir(), attention_plan(4, "float_offset", "tensor")), "the graph differs from the network by")


def test_diffusion_is_refused(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    options = load_options(workshop.write(diffusion_test_options(diffusion_options(), "none.pth")), is_train=False)
    model = MODELS.build(options.model_type, options, torch.device("cpu"))
    model.network.eval()
    (workshop.folder / "model.safetensors").write_bytes(pack(model)[0])
    assert main(["export", "onnx", "-w", "model.safetensors", "-o", "model.onnx", "--size", "8", "8"]) == 2
    assert "BIDiffSRModel restores an image in more than one call" in capfd.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused(freeze(convolutions()), rf"'{package}' is not installed; install the extra \[onnx\]")


def test_the_verb(workshop: Workshop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    option_file = str(workshop.write(test_options(workshop.fp, "weights/fp.pth")))
    assert main(["pack", "-opt", option_file, "-o", "model.safetensors"]) == 0
    base = ["export", "onnx", "-o", "model.onnx", "--size", "8", "9"]
    assert main([*base, "-w", "model.safetensors"]) == 0
    packed = (workshop.folder / "model.onnx").read_bytes()
    assert f"{len(packed):,} bytes, opset 21; 1 x 3 x 8 x 9 -> 1 x 3 x 16 x 18" in capfd.readouterr().out
    assert main([*base, "-w", "weights/fp.pth", "-opt", option_file, "--batch", "2"]) == 0
    session = onnxruntime.InferenceSession("model.onnx")
    assert session.get_inputs()[0].shape == [2, 3, 8, 9] and session.get_outputs()[0].shape == [2, 3, 16, 18]
    before = (workshop.folder / "model.onnx").read_bytes()
    monkeypatch.setitem(handlers(), "gelu", lambda graph, out, x, *rest: x.name)
    for arguments, message in (
            (["-w", "model.safetensors"], "the graph differs"),
            (["-w", "model.safetensors", "--batch", "0"], "must be positive"),
            (["-w", "model.safetensors", "-o", "model.pb"], "must end in .onnx"),
            (["-w", "weights/fp.pth"], "is no packed model")):
        assert main([*base, *arguments]) == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error
    assert (workshop.folder / "model.onnx").read_bytes() == before
