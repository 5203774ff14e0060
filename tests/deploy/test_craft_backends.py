"""What holds between the backends on CRAFT, whose low-bit images change with every flipped code.

Where float32 rounds a value to the other side of a boundary of its grid, a code flips. The quantizers behind it make
the change larger, and channel attention spreads it over the image: each execution in float32 is another draw of a part
of the quantization noise, the simulation's too. Without the flips, in float64, they are one.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.frozen import FrozenLinear
from basicsr_quant.deploy.native.grids import ActivationGrid
from basicsr_quant.deploy.runtimes.base import runtime
from basicsr_quant.deploy.runtimes.native import Native
from basicsr_quant.deploy.runtimes.reference import ReferenceLayer
from basicsr_quant.engine.datasets import open_datasets
from basicsr_quant.io.images import to_image
from basicsr_quant.io.weights import load_file
from basicsr_quant.metrics.psnr_ssim import calculate_psnr
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.layers.linear import SplitLinear
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.registry import MODELS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(Native().missing() is not None, reason=str(Native().missing()))]
SCALE = 4

Images = list[tuple[torch.Tensor, torch.Tensor]]
Craft = Callable[[int], nn.Module]


@pytest.fixture(scope="module")
def craft(data_root: Path, repository: Path) -> Craft:
    """Return CRAFT x4 at a number of bits, frozen: the plan of the shipped options, bounds by DOBI on two patches."""
    weights = data_root / "weights/CRAFT_x4.pth"
    if not weights.is_file():
        pytest.skip("SR_DATA_ROOT has no weights/CRAFT_x4.pth")
    patches = load_file(str(data_root / "weights/bootstrap_calibration_lq.safetensors"))["lq"][:2]

    @cache
    def made(bits: int) -> nn.Module:
        options = load_options(repository / "options/test/test_2DQuant_CRAFT_x4.yml", [
            f"network_Q:weights={weights}", "path:pretrain_network_Q=~", f"bit={bits}", "num_gpu=0"], is_train=False)
        model = MODELS.build(options.model_type, options, torch.device("cpu"))
        model.load_pretrained(training=False)
        calibrate(model.network, [patches])
        return freeze(model.network)

    return made


@pytest.fixture(scope="module")
def images(data_root: Path, repository: Path) -> Images:
    """Set5: LR images (1, 3, h, w) and HR images (3, H, W)."""
    folder = data_root / "benchmark/Set5"
    options = load_options(repository / "options/test/test_2DQuant_CRAFT_x4.yml", [
        "bit=4", f"datasets:test_1:dataroot_gt={folder / 'HR'}",
        f"datasets:test_1:dataroot_lq={folder / 'LR_bicubic/X4'}"], is_train=False)
    found = open_datasets(options, "test")["Set5"]
    return [(found[index]["lq"][None], found[index]["gt"]) for index in range(len(found))]


def on(backend: str, network: nn.Module) -> nn.Module:
    return runtime(backend).attach(copy.deepcopy(network))


def psnr(restored: torch.Tensor, gt: torch.Tensor) -> float:
    return calculate_psnr(to_image(restored[0].float()), to_image(gt), SCALE, True)


@torch.inference_mode()
def test_four_bits_on_set5(craft: Craft, images: Images) -> None:
    simulated, native = craft(4), on("native", craft(4))
    simulated_64 = copy.deepcopy(simulated).double()
    reference_64 = on("reference", simulated_64)
    gains, away_simulated, away_native = [], 0.0, 0.0
    for image, gt in images:
        exact_image = simulated_64(image.double())
        assert (reference_64(image.double()) - exact_image).abs().max() <= 1e-9
        wanted, found = simulated(image), native(image)
        away_simulated += float((wanted - exact_image).square().mean())
        away_native += float((found - exact_image).square().mean())
        gains.append(psnr(found, gt) - psnr(wanted, gt))
    assert away_native <= 1.6 * away_simulated
    assert abs(statistics.mean(gains)) <= 0.1


@torch.inference_mode()
@pytest.mark.parametrize(("backend", "tolerance"), [("native", 3e-7), ("onednn", 2e-6)])
def test_every_layer_within_the_simulation(backend: str, tolerance: float, craft: Craft, images: Images) -> None:
    simulated, executed = copy.deepcopy(craft(4)), dict(on(backend, craft(4)).named_modules())
    errors: list[float] = []

    def compare(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            parts = [part for part in layer.modules() if isinstance(part, FrozenLinear)]
            for part in parts:
                quantizer = part.activation_quantizer
                assert isinstance(quantizer, Quantizer)
                codes = quantizer.encode(inputs[0])
                assert torch.equal(ActivationGrid.of(quantizer).encode(inputs[0]), codes)
                assert torch.equal(quantizer.decode(codes), quantizer(inputs[0]))
            wanted = torch.cat([ReferenceLayer(part)(*inputs) for part in parts], -1)
            errors.append(float((executed[name](*inputs) - wanted).norm() / wanted.norm()))

        return hook

    for name, module in simulated.named_modules():
        if isinstance(module, (SplitLinear, FrozenLinear)) and ".parts." not in name:
            module.register_forward_hook(compare(name))
    simulated(images[2][0])
    assert len(errors) == 64 and max(errors) <= tolerance


@torch.inference_mode()
def test_eight_bits_on_set5(craft: Craft, images: Images) -> None:
    simulated = craft(8)
    native = on("native", simulated)
    gains = [psnr(native(image), gt) - psnr(simulated(image), gt) for image, gt in images]
    assert abs(statistics.mean(gains)) <= 0.02
