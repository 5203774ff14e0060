"""OSEDiff from option files: three stages from scratch, LoRA on a folder of weights, tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipeline import osediff_options
from workshop import Workshop, error_lines

from basicsr_quant.compat import load_torchvision
from basicsr_quant.io.images import read_image, write_image

load_torchvision()
pytest.importorskip("diffusers")
pytest.importorskip("peft")


def test_of(options: dict[str, Any], **path: str) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if name not in ("train", "logger", "lora")}
    return kept | {"name": f"test_{options['name']}", "datasets": {"test_1": options["datasets"]["val"]}, "path": path}


test_of.__test__ = False  # type: ignore[attr-defined]


def result(workshop: Workshop, name: str) -> float:
    content = json.loads((workshop.folder / "results" / name / "metrics.json").read_text())
    return float(content["val"]["mean"]["psnr"])


def logged(workshop: Workshop, name: str) -> list[float]:
    text = (workshop.experiment(name) / f"train_{name}.log").read_text()
    return [float(value) for value in re.findall(r"validation val, iteration \d+: psnr ([\d.]+)", text)]


def test_from_scratch_to_a_test(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """Merged networks, or the plain ones of the second stage with the factors, restore alike."""
    options = osediff_options()
    assert workshop.train(options) == 0
    assert not error_lines(capfd.readouterr().err)
    models = workshop.experiment("tiny") / "models"
    assert workshop.network("tiny", "osediff", 4)["params"] == {}
    factors = workshop.network("tiny", "osediff")
    assert {name.partition(".")[0] for name in factors["params"]} == {"unet", "vae"}
    assert factors["metadata"]["lora_alpha"] == 8
    assert "unet.conv_in.base_layer.bias" in factors["params"]
    assert not any("lora" in name for name in workshop.network("tiny", "unet")["params"])
    before, after = (workshop.network("tiny", "vae", tag)["params"] for tag in (2, 4))
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"encoder", "quant_conv"}
    merged = test_of(options, pretrain_network_unet=str(models / "net_unet_latest.pth"),
                     pretrain_network_vae=str(models / "net_vae_latest.pth"))
    assert workshop.test(merged) == 0
    assert result(workshop, "test_tiny") == pytest.approx(logged(workshop, "tiny")[-1], abs=2e-3)
    joined = test_of(options, pretrain_network_unet=str(models / "net_unet_4.pth"),
                     pretrain_network_vae=str(models / "net_vae_4.pth"), osediff=str(models / "net_osediff_6.pth"))
    assert workshop.test(joined, "name=joined") == 0
    assert result(workshop, "joined") == pytest.approx(result(workshop, "test_tiny"), abs=2e-3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A diffusers folder of small networks, and a prompt embedding."""
    from basicsr_quant.archs.osediff import sd_unet, sd_vae

    torch.manual_seed(0)
    path = tmp_path / "sd"
    sd_unet((8, 16), 1, 1, (1, 2), 8, 4, 4).save_pretrained(path / "unet")
    sd_vae((8, 8), 1, 4, 4, 0.3).save_pretrained(path / "vae")
    torch.save(torch.randn(1, 77, 8), tmp_path / "prompt.pt")
    return path


def lora_options(folder: Path) -> dict[str, Any]:
    options = osediff_options("lora")
    for key in ("network_unet", "network_vae", "one_step"):
        options.pop(key)
    options["train"] = {"total_iter": 3, "perceptual_opt": {"type": "LPIPSLoss", "net": "squeeze", "pnet_rand": True}}
    options["datasets"]["train"]["gt_size"] = 32
    options["path"] = {"sd": str(folder), "prompt_embedding": str(folder.parent / "prompt.pt")}
    return options


def test_lora_on_a_folder(workshop: Workshop, folder: Path) -> None:
    """Only the factors are saved; they load again, alone and in the published layout."""
    from basicsr_quant.archs.published.osediff import ADAPTERS

    options = lora_options(folder)
    assert workshop.train(options) == 0
    models = workshop.experiment("lora") / "models"
    assert {path.name for path in models.iterdir()} >= {"net_osediff_3.pth"}
    assert not list(models.glob("net_unet*"))
    assert "perceptual" in (workshop.experiment("lora") / "train_lora.log").read_text()
    path = options["path"] | {"osediff": str(models / "net_osediff_latest.pth")}
    assert workshop.test(test_of(options, **path)) == 0
    assert result(workshop, "test_lora") == pytest.approx(logged(workshop, "lora")[-1], abs=2e-3)
    state = workshop.network("lora", "osediff")["params"]
    parts = {f"state_dict_{part}": {name.removeprefix(f"{part}."): tensor for name, tensor in state.items()
                                    if name.startswith(part)} for part in ("unet", "vae")}
    torch.save({"rank_unet": 2, "rank_vae": 2, "unet_lora_encoder_modules": list(ADAPTERS), **parts}, "osediff.pkl")
    path["osediff"] = "osediff.pkl"
    assert workshop.test(test_of(options, **path), "name=published", "lora:rank_unet=2") == 0
    assert result(workshop, "published") == pytest.approx(result(workshop, "test_lora"), abs=1e-6)


def test_folders_of_low_resolution_images_alone(workshop: Workshop, folder: Path) -> None:
    options = lora_options(folder)
    write_image(Path("lr/odd.png"), read_image(next(Path("data/val/LR").iterdir()))[:7, :9])
    test = test_of(options, **options["path"]) | {"datasets": {"test_1": {"name": "lr", "dataroot_lq": "lr"}}}
    test["val"] = {"save_img": True, "suffix": ""}
    for mode, size in (("corrected", (14, 18, 3)), ("released", (8, 16, 3))):
        force = ("pipeline:precision=fp32", "pipeline:process_size=8", "pipeline:posterior=mode", f"name={mode}")
        test.pop("pipeline", None)
        assert workshop.test(test | {"mode": mode}, *force) == 0
        assert read_image(workshop.folder / "results" / mode / "visualization" / "lr" / "odd.png").shape == size


@pytest.mark.parametrize(("change", "message"), [
    ({"sd": None}, r"path:sd and path:pretrain_network_unet are missing; .*2\.1-base.*sd2-community"),
    ({"sd": "nowhere"}, r"'nowhere/unet/diffusion_pytorch_model.safetensors' does not exist"),
    ({"osediff": "osediff.pkl"}, r"'osediff.pkl' does not exist; osediff.pkl is published at github.com/cswry/OSEDiff"),
    ({"prompt_embedding": None}, r"text_encoder/config.json', which does not exist"),
    ({"prompt_embedding": "wide.pt"}, "embedding has width 9, the UNet takes 8"),
])
def test_missing_files_are_one_line(workshop: Workshop, folder: Path, capfd, change, message) -> None:
    options = lora_options(folder)
    torch.save(torch.randn(1, 77, 9), "wide.pt")
    path = {key: value for key, value in (options["path"] | change).items() if value is not None}
    assert workshop.test(test_of(options, **path)) != 0
    lines = error_lines(capfd.readouterr().err)
    assert len(lines) == 1 and re.search(message, lines[0])
