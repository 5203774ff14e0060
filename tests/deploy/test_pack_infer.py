"""A model packed and run by the two commands gives the images of test.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_workshop import diffusion_options, diffusion_test_options
from workshop import Workshop, make_weights, test_options

from basicsr_quant.cli.main import main
from basicsr_quant.deploy.container import read, to_bytes
from basicsr_quant.deploy.pack import pack, pack_frozen
from basicsr_quant.deploy.streams import streams
from basicsr_quant.deploy.unpack import unpack
from basicsr_quant.io.images import read_image, write_image
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.accounting import account
from basicsr_quant.registry import MODELS

LARGEST_HEADER = 64 * 1024


def infer(workshop: Workshop, output: str, *arguments: str, weights: str | None = "model.safetensors") -> int:
    given = [] if weights is None else ["-w", weights]
    return main(["infer", "-i", "data/val/LR", "-o", output, "--device", "cpu", *given, *arguments])


def packed(workshop: Workshop, tested: dict[str, Any], *arguments: str) -> Path:
    """Test, then pack."""
    tested["val"] = {**tested["val"], "save_img": True, "suffix": ""}
    assert workshop.test(tested) == 0
    assert main(["pack", "-opt", str(workshop.write(tested)), "-o", "model.safetensors", *arguments]) == 0
    return workshop.folder / "model.safetensors"


def differences(workshop: Workshop, tested: dict[str, Any], output: str) -> list[int]:
    """Return the largest difference of each image from that of test.py, in 8-bit units."""
    folder = workshop.folder / "results" / tested["name"] / "visualization/val"
    found = []
    for path in sorted(folder.glob("*.png")):
        ours = read_image(workshop.folder / output / f"{path.stem}x2.png").astype(int)
        found.append(int(np.abs(ours - read_image(path)).max()))
    assert len(found) == 3
    return found


def repacked(path: Path) -> bytes:
    content = unpack(path)
    return pack_frozen(content.network, content.facts)[0]


@pytest.fixture
def quantized(workshop: Workshop) -> dict[str, Any]:
    """Test options of a trained network."""
    assert workshop.train(workshop.dqc, "train:total_iter=1") == 0
    return test_options(workshop.dqc, "experiments/dqc/models/net_Q_latest.pth")


def test_two_d_quant(workshop: Workshop, quantized: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = packed(workshop, quantized)
    printed = capsys.readouterr().out
    assert f"{os.path.getsize(path):,} bytes on disk" in printed and "2DQuant, as published" in printed
    for backend, tolerance in (("simulate", 0), ("reference", 1), ("auto", 1)):
        assert infer(workshop, backend, "--backend", backend) == 0
        assert max(differences(workshop, quantized, backend)) <= tolerance
    assert repacked(path) == path.read_bytes()
    weights = quantized["path"]["pretrain_network_Q"]
    assert infer(workshop, "checkpoint", "-opt", str(workshop.write(quantized)), weights=weights) == 0
    assert differences(workshop, quantized, "checkpoint") == [0, 0, 0]


def test_evaluation_by_a_backend(workshop: Workshop, quantized: dict[str, Any],
                                 capfd: pytest.CaptureFixture[str]) -> None:
    measured = {}
    for backend in ("simulate", "reference", "auto"):
        assert workshop.test(quantized, f"val:backend={backend}", f"name={backend}") == 0
        simulated = "execution is simulated: values" in capfd.readouterr().err
        assert simulated == (backend == "simulate")
        measured[backend] = json.loads((workshop.folder / "results" / backend / "metrics.json").read_text())
    for backend in ("reference", "auto"):
        for name, results in measured["simulate"].items():
            assert abs(results["mean"]["psnr"] - measured[backend][name]["mean"]["psnr"]) < 0.02
    assert workshop.test(quantized, "val:backend=openvino") == 2
    assert "val.backend" in capfd.readouterr().err.replace(":", ".")


def test_payload_is_what_accounting_says(workshop: Workshop, quantized: dict[str, Any]) -> None:
    options = load_options(workshop.write(quantized), is_train=False)
    model = MODELS.build(options.model_type, options, torch.device("cpu"))
    model.load_pretrained(training=False)
    counted = account(model.network, (1, 3, 8, 8))
    data, sizes = pack(model)
    assert sizes.codes + sizes.scales + sizes.rest == counted.packed_bytes
    assert sizes.total == len(data) and sizes.header <= LARGEST_HEADER


def test_half_precision_rest_is_smaller_and_packs_again(workshop: Workshop, quantized: dict[str, Any]) -> None:
    full = packed(workshop, quantized).stat().st_size
    path = packed(workshop, quantized, "--rest", "fp16")
    assert path.stat().st_size < full and repacked(path) == path.read_bytes()
    assert infer(workshop, "half") == 0 and max(differences(workshop, quantized, "half")) <= 2


@pytest.mark.parametrize(("place", "value", "message"), [
    (("options", "model_type"), "Nothing", "unknown model_type 'Nothing'"),
    (("options", "network_Q", "embed_dim"), -4, "cannot be built"),
    (("options", "network_Q", "embed_dim"), 16, "does not fit its own options"),
    (("options", "quant", "plan"), [{"*.qkv": {"weight": {"bits": 4, "grid": "cubic"}}}], "cubic"),
    (("options", "quant", "plan"), [{"*.qkv": {"weight": {"bits": 9}}}], "bits must be an integer from 1 to 8"),
    (("options", "quant", "plan"), [{"*.qkv": {"weight": {"bits": 2}}}], "bytes of codes"),
    (("bits",), {"nothing": 4}, "does not fit its options"),
    (("folded",), ["conv_first"], "folded transformation"),
    (("folded",), 3, "lacks the facts"),
])
def test_facts_that_contradict_the_content(workshop: Workshop, quantized: dict[str, Any], place: tuple[str, ...],
                                           value: Any, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = packed(workshop, quantized)
    content = read(path)
    block: Any = content.facts
    for key in place[:-1]:
        block = block[key]
    block[place[-1]] = value
    path.write_bytes(to_bytes(content))
    assert infer(workshop, "out") == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (workshop.folder / "out").exists()


def test_full_precision(workshop: Workshop) -> None:
    path = packed(workshop, test_options(workshop.fp, "weights/fp.pth"))
    assert infer(workshop, "out") == 0
    assert differences(workshop, test_options(workshop.fp, "weights/fp.pth"), "out") == [0, 0, 0]
    assert not list(streams(unpack(path).network))
    assert repacked(path) == path.read_bytes()


@pytest.mark.parametrize("kind", ["bi_diffsr", "bnn", "ir_net"])
def test_binary_diffusion(workshop: Workshop, kind: str) -> None:
    options = diffusion_options(kind)
    assert workshop.train(options, "train:total_iter=1") == 0
    tested = diffusion_test_options(options, "experiments/diffusion/models/net_g_latest.pth")
    path = packed(workshop, tested)
    for backend in ("simulate", "reference"):
        assert infer(workshop, backend, "--backend", backend) == 0
        assert differences(workshop, tested, backend) == [0, 0, 0]
    assert infer(workshop, "seeded", "--seed", "5") == 0
    assert max(differences(workshop, tested, "seeded")) > 0
    assert {stream.bits for stream in streams(unpack(path).network)} == {1}
    assert repacked(path) == path.read_bytes()
    assert infer(workshop, "tiled", "--tile", "8") == 2


def test_tiles(workshop: Workshop, quantized: dict[str, Any]) -> None:
    packed(workshop, quantized, "--force_yml", "val:tile_overlap=4")
    assert infer(workshop, "whole") == 0
    assert infer(workshop, "tiled", "--tile", "8") == 0
    difference = read_image(workshop.folder / "tiled/im0x2.png").astype(int) - read_image(
        workshop.folder / "whole/im0x2.png")
    assert 0 < np.abs(difference).max() < 64
    assert infer(workshop, "narrow", "--tile", "4") == 2


def test_one_bad_image_does_not_stop_the_rest(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    packed(workshop, test_options(workshop.fp, "weights/fp.pth"))
    (workshop.folder / "data/val/LR/im1x2.png").write_bytes(b"\x89PNG nothing")
    capfd.readouterr()
    assert infer(workshop, "out") == 2
    assert sorted(path.name for path in (workshop.folder / "out").iterdir()) == ["im0x2.png", "im2x2.png"]
    assert "1 of 3 images failed; first: 'data/val/LR/im1x2.png'" in capfd.readouterr().err


def test_a_single_image_and_a_result_that_would_overwrite_it(workshop: Workshop) -> None:
    packed(workshop, test_options(workshop.fp, "weights/fp.pth"))
    arguments = ["infer", "-i", "data/val/LR/im0x2.png", "-w", "model.safetensors", "--device", "cpu", "-o"]
    before = Path("data/val/LR/im0x2.png").read_bytes()
    assert main([*arguments, "out"]) == 0 and (workshop.folder / "out/im0x2.png").is_file()
    assert main([*arguments, "data/val/LR"]) == 2
    assert Path("data/val/LR/im0x2.png").read_bytes() == before


@pytest.mark.parametrize(("arguments", "message"), [
    (["-w", "weights/fp.pth"], "is no packed model"),
    ([], "-w is missing"),
    (["-w", "absent.safetensors"], "cannot read the packed model"),
    (["-w", "weights/fp.pth", "-opt", "fp.yml", "--device", "nothing"], "--device"),
    (["-w", "weights/fp.pth", "-opt", "fp.yml", "--tile", "-1"], "--tile must not be negative"),
])
def test_wrong_calls(workshop: Workshop, arguments: list[str], message: str,
                     capfd: pytest.CaptureFixture[str]) -> None:
    workshop.write(test_options(workshop.fp, "weights/fp.pth"), "fp")
    assert main(["infer", "-i", "data/val/LR", "-o", "out", *arguments]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_another_network_than_the_options_describe_is_not_packed(workshop: Workshop) -> None:
    make_weights(workshop.folder / "weights/fp.pth")
    options = load_options(workshop.write(test_options(workshop.fp, "weights/fp.pth")), is_train=False)
    model = MODELS.build(options.model_type, options, torch.device("cpu"))
    model.load_pretrained(training=False)
    model.network.conv_first = torch.nn.Conv2d(3, 12, 1)
    with pytest.raises(Exception, match="do not say how to build this network, first at conv_first.weight"):
        pack(model)


def test_images_of_odd_sizes(workshop: Workshop) -> None:
    packed(workshop, test_options(workshop.fp, "weights/fp.pth"))
    write_image(workshop.folder / "odd/a.png", np.zeros((1, 7, 3), np.uint8))
    assert main(["infer", "-i", "odd", "-o", "out", "-w", "model.safetensors", "--device", "cpu"]) == 0
    assert read_image(workshop.folder / "out/a.png").shape == (2, 14, 3)
