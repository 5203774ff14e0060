"""``sensitivity`` as a user runs it: the plan that it writes trains, and takes no more bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from workshop import Workshop

from basicsr_quant.cli.main import main

pytest.importorskip("matplotlib")


def test_sensitivity(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(workshop.folder)
    path = workshop.write(workshop.dqc)
    assert main(["sensitivity", "-opt", str(path), "--bits", "2", "4", "-o", "found"]) == 0
    assert "most sensitive at 2 bits" in capsys.readouterr().out
    content = json.loads(Path("found/sensitivity.json").read_text())
    assert 0 < content["packed_bytes"] <= content["uniform_bytes"]
    assert all(layer["errors"]["2"] > layer["errors"]["4"] > 0 for layer in content["layers"])
    widths = {layer["bits"] for layer in content["layers"]}
    assert widths == {2, 4}
    assert Path("found/sensitivity.png").stat().st_size > 1000
    mixed = yaml.safe_load(Path("found/dqc_mixed.yml").read_text())
    mixed["pathFP"]["pretrain_network_FP"] = os.path.abspath(mixed["pathFP"]["pretrain_network_FP"])
    assert workshop.train(mixed) == 0
    stored = {name: int(tensor) for name, tensor in workshop.network("dqc_mixed", "Q")["params"].items()
              if name.endswith("n_bit") and "weight" in name}
    assert set(stored.values()) == {2, 4}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--budget", "10"], "--budget: 10 bytes are too few"),
    (["--force_yml", "bit=~", "quant:plan=[{'*.fc1': {weight: {bits: 4}}}]"], "bit is missing"),
])
def test_what_cannot_be(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                        arguments: list[str], message: str) -> None:
    monkeypatch.chdir(workshop.folder)
    path = workshop.write(workshop.dqc)
    assert main(["sensitivity", "-opt", str(path), "--bits", "3", "-o", "found", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and not Path("found").exists()
