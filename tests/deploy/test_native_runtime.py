"""The backend ``native``: packed networks of every kind against the simulation and the exact reference."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from layer_strategies import quantized
from torch import nn

from basicsr_quant.archs.bi_diffsr_unet import BIDiffSRUNet
from basicsr_quant.archs.published.swinir import import_swinir
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.deploy import native
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.native import library
from basicsr_quant.deploy.native.attention import NativeSwinBlock
from basicsr_quant.deploy.native.binary_conv import NativeBinaryUnit
from basicsr_quant.deploy.runtimes import base
from basicsr_quant.deploy.runtimes.native import Native, NativeLayer
from basicsr_quant.deploy.runtimes.onednn import OneDnn, OneDnnConv2d
from basicsr_quant.deploy.runtimes.reference import ReferenceLayer
from basicsr_quant.deploy.runtimes.simulate import Simulate
from basicsr_quant.diffusion.sampling import sample
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.io.images import read_image, to_image, to_tensor
from basicsr_quant.io.weights import load_state_dict
from basicsr_quant.metrics.psnr_ssim import calculate_psnr
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.layers.linear import SplitLinear
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.report.bench.networks import LINES, Network

needs_kernels = pytest.mark.skipif(not native.available(), reason="no C compiler, or native kernels switched off")
LAYER_TOLERANCE, DECIBELS = 3e-6, 0.02


def frozen(network: nn.Module, images: torch.Tensor, lines: list[dict[str, Any]], bits: int = 4) -> nn.Module:
    tensors = {name: {"bits": bits, "observer": "minmax"} for name in ("weight", "activation")}
    prepared = prepare(network.eval(), QuantPlan.parse(lines, tensors)).eval()
    calibrate(prepared, [images])
    return freeze(prepared)


@needs_kernels
@given(quantized())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@torch.no_grad()
def test_layers_agree_with_the_exact_sums(made: tuple[nn.Module, torch.Tensor]) -> None:
    network, x = made
    layer = freeze(network)[0]  # type: ignore[index]
    wanted = ReferenceLayer(layer)(x)
    found = Native().attach(nn.Sequential(layer))(x)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max().clamp_min(0.1)


@needs_kernels
@pytest.mark.parametrize("bits", [2, 4, 8])
@torch.no_grad()
def test_layers_within_a_network(bits: int, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(bits)
    network, images = SwinIR(2, depths=[2], embed_dim=24, num_heads=[2]), torch.rand(1, 3, 16, 24)
    lines = [*LINES[:3], {"layers.*.conv": {"weight": {"per": "channel"}, "activation": {"grid": "int_zero_point"}}}]
    errors: dict[str, float] = {}
    with caplog.at_level(logging.INFO, "basicsr_quant"):
        found = Native().attach(frozen(network, images, lines, bits))
    here = OneDnn().missing() is None
    assert f"'native' executes {12 + here} of 13 quantized layers" in caplog.text

    def compare(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            parts = module.layer.parts if isinstance(module.layer, SplitLinear) else [module.layer]
            wanted = torch.cat([ReferenceLayer(part)(*inputs) for part in parts], -1 if output.dim() == 3 else 1)
            errors[name] = float((output - wanted).abs().max() / wanted.abs().max())

        return hook

    for name, module in found.named_modules():
        if isinstance(module, (NativeLayer, OneDnnConv2d)):
            module.register_forward_hook(compare(name))
    found(images)
    assert len(errors) == 8 + here and max(errors.values()) <= LAYER_TOLERANCE


@needs_kernels
@torch.no_grad()
def test_blocks_are_taken_whole_and_the_rest_is_simulated(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    network, images = SwinIR(2, depths=[2], embed_dim=24, num_heads=[2]), torch.rand(1, 3, 16, 16)
    simulated = frozen(network, images, [{"*.blocks.1.mlp.fc1": {"weight": {}, "activation": {}, "split_in": {
        "at": "half", "activation_axis": -1}}}, *LINES])
    wanted = simulated(images)
    with caplog.at_level(logging.INFO, "basicsr_quant"):
        found = Native().attach(simulated)
    assert "'native' executes 11 of 12 quantized layers" in caplog.text
    first, second = found.layers[0].residual_group.blocks  # type: ignore[union-attr, index]
    assert isinstance(first, NativeSwinBlock) and isinstance(second.attn.qkv, NativeLayer)
    assert isinstance(second.attn.qkv.layer, SplitLinear)
    assert (found(images) - wanted).norm() <= 0.05 * (wanted - wanted.mean()).norm()


@needs_kernels
def test_other_dtypes_stay_simulated() -> None:
    network, images = SwinIR(2, depths=[1], embed_dim=12, num_heads=[2]), torch.rand(1, 3, 8, 8)
    double = frozen(network, images, LINES).double()
    wanted = double(images.double())
    assert torch.equal(Native().attach(double)(images.double()), wanted)


@needs_kernels
@pytest.mark.parametrize("binarizer", [None, "react_net", "xnor_net"])
@torch.no_grad()
def test_binary_diffusion(binarizer: str | None) -> None:
    torch.manual_seed(3)
    network = BIDiffSRUNet(inner_channel=16, norm_groups=4, channel_mults=(1, 2), res_blocks=1, image_size=32,
                           fp_res=(32,), total_step=12, dynamic_group=3, binarizer=binarizer).eval()
    for name, parameter in network.named_parameters():
        if "shift" in name or "activation" in name:
            nn.init.normal_(parameter, std=0.1)
    simulated = freeze(network)
    found = Native().attach(copy.deepcopy(simulated))
    units = [module for module in found.modules() if isinstance(module, NativeBinaryUnit)]
    assert bool(units) == (binarizer != "xnor_net")
    schedule = NoiseSchedule(n_timestep=12, linear_start=1e-4, linear_end=0.5, num_inference_steps=3)
    condition, gt = torch.rand(1, 3, 32, 32), to_image(torch.rand(3, 32, 32))
    scores = []
    for form in (simulated, found):
        restored = sample(form, condition, schedule, None, lambda number, shape: torch.randn(
            (1, *shape), generator=torch.Generator().manual_seed(number)))
        scores.append(calculate_psnr(to_image(restored[0]), gt))
    assert abs(scores[0] - scores[1]) <= DECIBELS


@needs_kernels
@torch.no_grad()
def test_swinir_light_on_a_photograph(data_root: Path, repository: Path) -> None:
    network = Network([6] * 4, 60, 4, 1, 8, "cpu", 0).full_precision()
    weights = repository / "experiments/pretrained_models/SwinIR_light_x4_BSDS400.pth"
    network.load_state_dict(import_swinir(load_state_dict(weights)), strict=False)
    folder = data_root / "benchmark/Set5"
    image = to_tensor(np.ascontiguousarray(read_image(folder / "LR_bicubic/X4/butterflyx4.png")[8:48, 8:56]))[None]
    gt = np.ascontiguousarray(read_image(folder / "HR/butterfly.png")[32:192, 32:224])
    simulated = frozen(network, image, LINES, 8)
    found = Native().attach(copy.deepcopy(simulated))
    scores = [calculate_psnr(to_image(form(image)[0]), gt, 4, True) for form in (simulated, found)]
    assert scores[0] > 25 and abs(scores[0] - scores[1]) <= DECIBELS


@needs_kernels
@torch.inference_mode()
def test_not_slower_than_the_simulation() -> None:
    network = Network([2], 60, 4, 1, 32, "cpu", 0)
    prepared, images = network.quantized("minmax"), network.images()
    calibrate(prepared, [images])
    simulated = freeze(prepared)
    forms = {"simulated": simulated, "native": Native().attach(copy.deepcopy(simulated))}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(8):
        for name, form in forms.items():
            began = time.process_time()
            form(images)
            seconds[name].append(time.process_time() - began)
    ratios = [slow / fast for slow, fast in zip(*(seconds[name][1:] for name in forms), strict=True)]
    assert statistics.median(ratios) >= 0.8


def test_choice(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(base.runtime("auto", torch.device("cuda")), Simulate)
    monkeypatch.setenv(native.SWITCH, "0")
    with caplog.at_level(logging.WARNING, "basicsr_quant"):
        assert isinstance(base.runtime("native"), Simulate)
        chosen = base.runtime("auto")
    assert isinstance(chosen, OneDnn if OneDnn().missing() is None else Simulate)
    assert caplog.messages[0] == ("backend 'native' does not run here (BASICSR_QUANT_NATIVE=0 switches it off); "
                                  "'simulate' comes next")
    monkeypatch.delenv(native.SWITCH)
    if native.available():
        assert isinstance(base.runtime("auto"), Native)


def test_a_processor_without_fast_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setattr(library, "_best", lambda: SimpleNamespace(level="generic"))
    assert native.available() and Native().missing() == "this processor has no AVX-512 with VNNI"
