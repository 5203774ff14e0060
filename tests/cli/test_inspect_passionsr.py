"""``inspect`` of PassionSR on the meta device: the 354 layers, bytes, how its reductions are given."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from basicsr_quant.cli import main as command_line
from basicsr_quant.compat import load_torchvision

load_torchvision()
pytest.importorskip("diffusers")

FOLDER = Path(__file__).parents[2] / "options" / "test"


@pytest.mark.parametrize(("bits", "megabytes", "smaller", "change"), [
    (8, 958, 3.96, "-81.8%"), (6, 721, 5.27, "-86.3%")])
def test_released_settings(bits: int, megabytes: int, smaller: float, change: str, tmp_path: Path, fixtures: Path,
                           capsys: pytest.CaptureFixture[str]) -> None:
    """Specification 6.3: true storage 958 and 721 MB; the published convention's -81.8 and -86.3 %."""
    file, out = FOLDER / f"test_PassionSR_UV_W{bits}A{bits}.yml", tmp_path / "out.json"
    assert command_line.main(["inspect", "-opt", str(file), "--json", str(out), "--force_yml", "mode=released"]) == 0
    content, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert round(content["packed_bytes"] / 1e6) == megabytes and content["parameters"] == 949_564_587
    assert content["float_bytes"] / content["packed_bytes"] == pytest.approx(smaller, abs=5e-3)
    assert f"({change})" in printed and "quantized: 354 layers, 128 operands of attentions" in printed
    layers = {(row["component"], row["name"]): row for row in content["rows"] if row["type"] != "Operand"}
    with open(fixtures / "passionsr" / "passionsr_layers.csv", newline="") as table:
        wanted = list(csv.DictReader(table))
    assert len(layers) == len(wanted) == 354
    for row in wanted:
        found = layers[row["component"], row["diffusers_name"]]
        assert "x".join(map(str, found["weight_shape"])) == row["weight_shape"]
        assert found["weight_bits"] == found["activation_bits"] == (8 if row["kept_8bit"] == "1" else bits)
    published, products = content["conventions"][1:]
    full, quantized = published["operations"]
    assert full / 1e9 == pytest.approx(2217.7, abs=0.1) and products["operations"][0] == full
    assert products["operations"][1] < quantized < full


def test_unet_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    file = FOLDER / "test_PassionSR_U_W6A6.yml"
    assert command_line.main(["inspect", "-opt", str(file), "--json", str(out), "--size", "16", "17"]) == 0
    content = json.loads(out.read_text())
    assert content["size"] == [16, 18] and {row["component"] for row in content["rows"]} == {"unet"}
