"""``inspect`` of diffusion networks: what is printed, what is in the JSON file, bad sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from basicsr_quant.cli import main as command_line

FOLDER = Path(__file__).parents[2] / "options" / "train"
SMALL = ["network_g:inner_channel=16", "network_g:norm_groups=4", "network_g:channel_mults=[1, 2]",
         "network_g:fp_res=[256]"]


def inspect(file: str, *arguments: str) -> int:
    return command_line.main(["inspect", "-opt", str(FOLDER / file), *arguments])


def test_published_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert inspect("train_BI_DiffSR_x2.yml", "--json", str(tmp_path / "step.json")) == 0
    printed = capsys.readouterr().out
    assert "image 256x256, one denoising step; parameters 51,280,387, of which binary 48,211,968" in printed
    assert "packed (binary weights as bits, their scales and the rest in float32) 18,369,548 (11.166x" in printed
    assert "MACs: 133.350 G, of which binary 98.650 G, full precision 34.700 G (26.0%)" in printed
    assert "binary (4.58 in its tables)" in printed and "binary (36.67 in its tables)" in printed
    content = json.loads((tmp_path / "step.json").read_text())
    assert content["binary_macs"] == 98_650_030_080 and content["full_precision_macs"] == 34_699_882_496
    assert content["packed_bytes"] == 18_369_548 and content["scales"] == 17_344
    [convention] = content["conventions"]
    assert convention["parameters"] == {"full": 3_068_419, "binary": 1_506_624.0}
    assert (convention["printed_parameters_m"], convention["printed_operations_g"]) == (4.58, 36.67)
    rows = {layer["name"]: layer for layer in content["layers"]}
    assert rows["downs.1.block1.conv.binary"]["weight_bits"] == 1 and rows["downs.0"]["weight_bits"] == 32


def test_full_precision_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect("BI_DiffSR_baselines/train_SR3_x4.yml") == 0
    printed = capsys.readouterr().out
    assert "(55.41 in its tables)" in printed and "(176.41 in its tables)" in printed
    assert "of which binary 0; their scales 0" in printed and "(1.000x smaller)" in printed


def test_size_is_that_of_the_low_resolution_image(tmp_path: Path) -> None:
    """25 x 20 LR pixels are 50 x 40 at twice the size, sampled on 56 x 40 by a network that halves three times."""
    json_file = tmp_path / "step.json"
    assert inspect("train_BI_DiffSR_x2.yml", "--size", "25", "20", "--json", str(json_file)) == 0
    assert json.loads(json_file.read_text())["size"] == [56, 40]
    assert inspect("train_BI_DiffSR_x2.yml", "--size", "25", "20", "--json", str(json_file), "--force_yml", *SMALL) == 0
    assert json.loads(json_file.read_text())["size"] == [50, 40]


def test_bad_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect("train_BI_DiffSR_x2.yml", "--size", "0", "20") != 0
    assert "--size: height and width must be positive, found 0 20" in capsys.readouterr().err
