"""Bytes of packed files: the payload is what counting says, to the byte, and the rest of the file is small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packed_swinir import tiny_model

from basicsr_quant.compat import load_torchvision
from basicsr_quant.deploy.pack import Sizes, pack, pack_frozen
from basicsr_quant.deploy.unpack import skeleton, unpack
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.accounting import account
from basicsr_quant.quant.binary.accounting import account_step
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.layers.weighted import weighted_layers
from basicsr_quant.registry import MODELS

OPTIONS = Path(__file__).parents[2] / "options/test"
LARGEST_HEADER = 160_000


def built(name: str) -> RestorationModel:
    """A model of an option file, with random weights where its class makes some."""
    options = load_options(OPTIONS / name, ["num_gpu=0"], is_train=False)
    torch.manual_seed(0)
    model: RestorationModel = MODELS.build(options.model_type, options, torch.device("cpu"))
    return model


def payload(sizes: Sizes) -> int:
    return sizes.total - sizes.header


@pytest.mark.parametrize("bit", range(1, 9))
def test_every_width_is_counted_and_packs_to_its_own_bytes(bit: int, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, bit)
    wanted = account(model.network, (1, 3, 8, 8)).packed_bytes
    data, sizes = pack(model)
    assert payload(sizes) == wanted and sizes.total == len(data)
    (tmp_path / "packed.safetensors").write_bytes(data)
    packed = unpack(tmp_path / "packed.safetensors")
    assert pack_frozen(packed.network, packed.facts)[0] == data


def test_a_network_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, built_networks = tiny_model(tmp_path), []
    whole = type(model).skeleton
    monkeypatch.setattr(type(model), "skeleton", classmethod(
        lambda cls, options: built_networks.append(1) or whole.__func__(cls, options)))
    pack(model)
    assert built_networks == [1]


@pytest.mark.parametrize(("rest", "limit"), [("fp32", 18_370_000), ("fp16", 12_235_000)])
def test_bi_diffsr_at_published_size(rest: str, limit: int) -> None:
    model = built("test_BI_DiffSR_x2.yml")
    model.network.eval()
    with torch.device("meta"):
        counted = account_step(type(model).skeleton(model.options), (1, 3, 64, 64))
    halved = 2 * counted.float_parameters if rest == "fp16" else 0
    _, sizes = pack(model, rest)
    assert payload(sizes) == counted.account.packed_bytes - halved <= limit
    assert sizes.header <= LARGEST_HEADER


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("test_PassionSR_UV_W8A8.yml", 0.97e9),
                                             ("test_PassionSR_UV_W6A6.yml", 0.74e9)])
def test_stable_diffusion_2_1(name: str, limit: float) -> None:
    load_torchvision()
    pytest.importorskip("diffusers")
    model = built(name)
    network = skeleton(model.options, name)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.05, 0.05)
    for _, quantizer in named_quantizers(network):
        quantizer.set_bounds(*(torch.full_like(quantizer.lower_bound, bound) for bound in (-0.06, 0.05)))
    network.context = torch.randn_like(network.context)  # type: ignore[arg-type]
    model.adopt(network.eval().requires_grad_(False))
    transformed = [layer for _, layer in weighted_layers(network) if layer.let is not None]
    terms = sum(layer.weight.shape[0] * (layer.weight[0, 0].numel() if layer.has_border() else 1)
                for layer in transformed)
    with torch.device("meta"):
        counted = account(type(model).skeleton(model.options), (1, 3, 64, 64))
    data, sizes = pack(model)
    assert payload(sizes) == counted.packed_bytes + 4 * (terms + network.context.numel())  # type: ignore[union-attr, operator]
    assert len(data) == sizes.total <= limit
