"""OSEDiff, and PassionSR on it: pipelines of two networks with a prompt embedding that no rule gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basicsr_quant.cli.pack import report
from basicsr_quant.compat import load_torchvision
from basicsr_quant.deploy.freeze import frozen_layers
from basicsr_quant.deploy.pack import pack, pack_frozen
from basicsr_quant.deploy.runtimes.base import runtime
from basicsr_quant.deploy.runtimes.reference import ReferenceLayer
from basicsr_quant.deploy.unpack import open_model
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.registry import MODELS

load_torchvision()
pytest.importorskip("diffusers")

OPTIONS = Path(__file__).parents[2] / "options/test"
TOLERANCE = 3e-6


def random_model(name: str) -> RestorationModel:
    """A model with random weights and bounds."""
    options = load_options(OPTIONS / name, ["num_gpu=0"], is_train=False)
    torch.manual_seed(0)
    model: RestorationModel = MODELS.build(options.model_type, options, torch.device("cpu"))
    network = type(model).skeleton(options)
    network.context = torch.randn_like(network.context)  # type: ignore[arg-type]
    for _, quantizer in named_quantizers(network):
        quantizer.set_bounds(-torch.rand(1).expand_as(quantizer.lower_bound) - 0.5,
                             torch.rand(1).expand_as(quantizer.upper_bound) * 2 + 0.5)
    model.adopt(network.eval().requires_grad_(False))
    return model


@pytest.mark.parametrize("name", ["test_OSEDiff_tiny.yml", "test_PassionSR_tiny.yml"])
def test_a_pipeline_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model, image = random_model(name), torch.rand(1, 3, 16, 17)
    with model.inference_form(model.network):
        wanted = model.restore(image)
    data, sizes = pack(model)
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    opened, packed = open_model(path, torch.device("cpu"))
    assert torch.equal(opened.restore(image), wanted)
    assert pack_frozen(packed.network, packed.facts)[0] == data
    assert f"{len(data):,} bytes on disk" in report(path, sizes, model.options, None)[0]
    quantized = len(list(frozen_layers(packed.network)))
    network = runtime("reference").attach(packed.network)
    layers = [module for module in network.modules() if isinstance(module, ReferenceLayer)]
    assert len(layers) == quantized
    errors = []
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: errors.append(
            float((output - module.layer(*inputs)).abs().max() / output.abs().max())))
    restored = opened.restore(image)
    assert restored.shape == wanted.shape and max(errors, default=0.0) <= TOLERANCE
