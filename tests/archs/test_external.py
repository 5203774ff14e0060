from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from basicsr_quant.archs.build import build_network
from basicsr_quant.archs.external import basicsr_network, spandrel_network
from basicsr_quant.archs.padding import run_padded
from basicsr_quant.archs.published.swinir import export_swinir
from basicsr_quant.archs.swinir import SwinIR
from basicsr_quant.errors import UserError


@pytest.fixture(scope="module")
def craft_weights(data_root: Path) -> Path:
    return data_root / "weights" / "CRAFT_x4.pth"


def _luma(image: np.ndarray) -> np.ndarray:
    """Return BT.601 luma in [16, 235] of (h, w, 3) BGR in [0, 255]."""
    return image.astype(np.float64) @ np.array([24.966, 128.553, 65.481]) / 255 + 16


def test_craft_evaluates_to_its_published_number(craft_weights: Path, data_root: Path) -> None:
    network = build_network("spandrel", {"weights": str(craft_weights)}).eval()
    folder = data_root / "benchmark" / "Set5"
    values = []
    for path in sorted((folder / "HR").glob("*.png")):
        low = cv2.imread(str(folder / "LR_bicubic" / "X4" / f"{path.stem}x4.png"))
        high = cv2.imread(str(path))[:4 * low.shape[0], :4 * low.shape[1]]
        image = torch.from_numpy(low[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            output = network(image)[0].clamp(0, 1).mul(255).round()
        difference = (_luma(output.permute(1, 2, 0).numpy()[..., ::-1]) - _luma(high))[4:-4, 4:-4]
        values.append(10 * np.log10(255**2 / np.mean(difference**2)))
    assert np.mean(values) == pytest.approx(32.41, abs=0.02)


def test_craft_keeps_its_names_and_pads_itself(craft_weights: Path) -> None:
    network = spandrel_network(str(craft_weights))
    assert sum(parameter.numel() for parameter in network.parameters()) == 753_344
    assert network.upscale_factor == 4
    assert not hasattr(network, "window_multiple")
    names = dict(network.named_modules())
    assert "layers.0.residual_group.srwa_blocks.0.qkv" in names
    assert "layers.3.residual_group.srwa_blocks.3.attns.1.pos.pos_proj" in names
    minimum = network.minimum_size
    assert isinstance(minimum, int)
    with torch.no_grad():
        assert network(torch.rand(1, 3, 33, 47)).shape == (1, 3, 132, 188)
        assert run_padded(network, torch.rand(1, 3, 5, 7), 4, minimum=minimum).shape == (1, 3, 20, 28)


def test_meta_device_reads_names_and_shapes_only(craft_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basicsr_quant.archs.external.load_state_dict", None)
    with torch.device("meta"):
        network = build_network("spandrel", {"weights": str(craft_weights)})
        assert network(torch.empty(1, 3, 48, 64)).shape == (1, 3, 192, 256)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_spandrel_recognises_our_swinir(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    ours = SwinIR(2, img_size=16, depths=[2, 2], embed_dim=12, num_heads=[2, 2]).eval()
    state = {name: tensor.contiguous() for name, tensor in export_swinir(ours.state_dict(), {"img_size": 16}).items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"params": state}, path)
    else:
        save_file(state, path)
    theirs = spandrel_network(str(path)).eval()
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(theirs(image), ours(image), rtol=0, atol=1e-5)
    with torch.device("meta"):
        assert spandrel_network(str(path)).upscale_factor == 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_unknown_or_damaged_files_are_one_line(tmp_path: Path, device: str) -> None:
    unknown = tmp_path / "unknown.pth"
    torch.save({"params": {"a.weight": torch.ones(3)}}, unknown)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(unknown.read_bytes()[:200])
    incomplete = tmp_path / "incomplete.pth"
    network = SwinIR(2, img_size=16, depths=[2], embed_dim=12, num_heads=[2])
    state = export_swinir(network.state_dict(), {"img_size": 16})
    torch.save({name: tensor for name, tensor in state.items() if name != "norm.bias"}, incomplete)
    reasons = {unknown: "recognises no", damaged: "damaged", incomplete: "cannot be loaded"}
    reasons[tmp_path / "none.pth"] = "not exist"
    for path, reason in reasons.items():
        with torch.device(device), pytest.raises(UserError) as raised:
            spandrel_network(str(path))
        assert "\n" not in str(raised.value) and path.name in str(raised.value) and reason in str(raised.value).lower()


def test_basicsr_arch_by_name() -> None:
    options = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2, "img_range": 1.0}
    network = build_network("basicsr:EDSR", options)
    assert network(torch.rand(1, 3, 9, 7)).shape == (1, 3, 18, 14)
    options = {"depths": [1], "num_heads": [2], "embed_dim": 8, "window_size": 8, "upscale": 2}
    window = build_network("basicsr:SwinIR", options)
    assert window.window_multiple == 8


def test_mistakes_in_names_and_arguments_are_explained() -> None:
    with pytest.raises(UserError, match="did you mean 'EDSR'"):
        basicsr_network("EDSRR")
    with pytest.raises(UserError, match="did you mean 'SwinIR'"):
        build_network("SwinIr", {})
    with pytest.raises(UserError, match="did you mean 'embed_dim'"):
        build_network("SwinIR", {"upscale": 2, "embed_dims": 60})
    with pytest.raises(UserError, match="upscale"):
        build_network("SwinIR", {})
    with pytest.raises(UserError, match="num_in_ch"):
        build_network("basicsr:EDSR", {})
