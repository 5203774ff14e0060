"""Folders of config.json and model.safetensors; and full-precision exports in spandrel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_swinir import tiny_model
from workshop import NETWORK, make_weights

import basicsr_quant
from basicsr_quant.archs.build import build_network
from basicsr_quant.archs.published.table import importer
from basicsr_quant.compat import load_torchvision
from basicsr_quant.deploy import hub
from basicsr_quant.deploy.unpack import unpack
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import load_state_dict
from basicsr_quant.options.component import Component


@pytest.mark.parametrize("bit", [0, 3])
def test_a_model_comes_back(bit: int, tmp_path: Path) -> None:
    model, image = tiny_model(tmp_path, bit), torch.rand(2, 3, 7, 9)
    wanted = model.restore(image)
    basicsr_quant.save_pretrained(model, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    found = basicsr_quant.from_pretrained(tmp_path / "saved")
    assert torch.equal(found.restore(image), wanted)
    reference = basicsr_quant.from_pretrained(str(tmp_path / "saved"), backend="reference")
    assert (reference.restore(image) - wanted).abs().max() < 0.1 * wanted.std()
    described = json.loads((tmp_path / "saved/config.json").read_text())
    assert described["scale"] == 2 and described["options"] == unpack(tmp_path / "saved/model.safetensors").facts[
        "options"]


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    model = tiny_model(tmp_path)
    basicsr_quant.save_pretrained(model, tmp_path / "saved")
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "saved")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(basicsr_quant.from_pretrained("some/model", revision="v1").restore(image), model.restore(image))
    assert asked == [("some/model", {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"]})]

    def fail(name: str, **options: Any) -> str:
        raise OSError("no such\nrepository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("some/model", r"cannot be had from the Hub \(no such repository\)")


def refused(name: str | Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        hub.from_pretrained(name)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("some/model", "'huggingface_hub' is missing")
    refused("some/where/else", "named owner/name")
    refused(tmp_path, "cannot read")
    configuration = tmp_path / "config.json"
    configuration.write_text('{"architectures": []}')
    refused(tmp_path, "of another library")
    configuration.write_text('{"library_name": "basicsr_quant"}')
    refused(tmp_path, "holds no model.safetensors")
    basicsr_quant.save_pretrained(tiny_model(tmp_path), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(tmp_path, "is damaged or does not belong")


def test_the_package_stays_light() -> None:
    program = "import sys, basicsr_quant; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(basicsr_quant.__file__).parents[1])
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        basicsr_quant.nothing  # noqa: B018


@pytest.mark.parametrize("changes", [{}, {"upsampler": "pixelshuffle", "depths": [2, 2], "num_heads": [2, 2],
                                          "upscale": 4}])
def test_spandrel_loads_full_precision_exports(changes: dict[str, Any], tmp_path: Path) -> None:
    load_torchvision()
    spandrel = pytest.importorskip("spandrel")
    weights = tmp_path / "fp.pth"
    make_weights(weights, **changes)
    arguments = {key: value for key, value in {**NETWORK, **changes}.items() if key != "type"}
    network = build_network("SwinIR", arguments).eval()
    network.load_state_dict(importer(Component(type="SwinIR", arguments=arguments))(load_state_dict(weights)))
    theirs = spandrel.ModelLoader(torch.device("cpu")).load_from_file(weights)
    assert theirs.architecture.id == "SwinIR" and theirs.scale == arguments["upscale"]
    image = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        wanted = network(image)
        assert (theirs.model.eval()(image) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
