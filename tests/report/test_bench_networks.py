"""``bench swinir``, ``bi_diffsr`` and ``osediff``: the forms of a network compute the same. Times are not tested."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from basicsr_quant.archs.bi_diffsr_unet import BIDiffSRUNet
from basicsr_quant.cli import bench
from basicsr_quant.deploy import native
from basicsr_quant.deploy.runtimes.native import Native
from basicsr_quant.errors import UserError
from basicsr_quant.quant.binary.conv2d import BinaryConv2d
from basicsr_quant.report.bench import bi_diffsr, exported, forms, osediff
from basicsr_quant.report.bench.released_binary import ReleasedBinaryConv2d, with_released_convolutions

COMMANDS = {"swinir": ["--depths", "1", "--channels", "12", "--patch-size", "16"],
            "bi_diffsr": ["--channels", "16", "--size", "16"], "osediff": ["--narrower", "64", "--size", "32"]}


def run(folder: Path, *argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["bench", *argv, "--json", str(folder / "found.json")])
    assert arguments.threads == 1
    arguments.func(arguments)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("name", ["swinir", "bi_diffsr", pytest.param("osediff", marks=pytest.mark.slow)])
def test_forms(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "osediff":
        pytest.importorskip("diffusers")
    found = run(tmp_path, name, *COMMANDS[name], "--rounds", "2")
    (rows,) = found["tables"].values()
    errors = {row["variant"]: row["error"] for row in rows}
    plain = bi_diffsr.CLEAN if name == "bi_diffsr" else forms.FP32
    released = {"swinir": forms.RELEASED, "bi_diffsr": bi_diffsr.RELEASED, "osediff": osediff.ROUNDING}[name]
    assert errors[plain] == 0 and errors[released] < 1e-3
    assert next(row["speed-up"] for row in rows if row["variant"] == plain) == 1
    assert (forms.BACKEND.format("native") in errors) == (Native().missing() is None)
    assert all(error < 0.1 for error in errors.values()), errors
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        assert errors[exported.ONNXRUNTIME] < 1e-3
    assert {"threads", "allocator", "load average", "native kernels", "ISA"} <= set(found["environment"])
    assert found["title"] in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_rounds_are_checked(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rounds must be positive"):
        run(tmp_path, name, "--rounds", "0")


def test_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        run(tmp_path, "osediff", "--size", "33")


@torch.no_grad()
def test_released_binary_convolutions_compute_the_same() -> None:
    torch.manual_seed(0)
    network = BIDiffSRUNet(inner_channel=16, norm_groups=4, channel_mults=(1, 2), res_blocks=1).eval()
    layers = [layer for layer in with_released_convolutions(network).modules()
              if isinstance(layer, ReleasedBinaryConv2d)]
    ours = [layer for layer in network.modules() if isinstance(layer, BinaryConv2d)]
    assert len(layers) == len(ours) > 0
    for released, layer in zip(layers[:3], ours, strict=False):
        x = torch.randn(1, layer.weight.shape[1], 5, 6) * 2
        torch.testing.assert_close(released(x), layer(x), rtol=0, atol=1e-6)


def test_a_network_without_an_onnx_form_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> bytes:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(exported, "_onnx", fail)
    assert exported.exported_forms(torch.nn.Linear(2, 2), [torch.zeros(1, 2)]) == {}


def test_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    found = run(tmp_path, "swinir", *COMMANDS["swinir"], "--rounds", "1")
    (rows,) = found["tables"].values()
    assert not any("native" in row["variant"] for row in rows)
    assert found["environment"]["native kernels"] == "none"
