"""``bench conv`` and ``bench linear``: every variant computes what it should. Times are never tested."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from basicsr_quant.cli import bench
from basicsr_quant.deploy import native
from basicsr_quant.errors import UserError
from basicsr_quant.report.bench import conv, linear

APPROXIMATE = (conv.BF16, linear.BF16)


def run(folder: Path, *argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["bench", *argv, "--json", str(folder / "found.json")])
    arguments.func(arguments)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("switch", ["0", "1"])
@pytest.mark.parametrize("argv", [["conv", "--shapes", "24x9"], ["conv", "--shapes", "24x9", "--kernel", "1"],
                                  ["linear", "--shapes", "30x20", "--tokens", "40"]])
def test_variants(argv: list[str], switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(native.SWITCH, switch)
    found = run(tmp_path, *argv, "--rounds", "2")
    (rows,) = found["tables"].values()
    names = {row["variant"] for row in rows}
    assert rows[0]["speed-up"] == 1
    assert ({conv.NATIVE, linear.NATIVE} & names != set()) == native.available()
    for row in rows:
        assert row["error"] < (2e-2 if row["variant"] in APPROXIMATE else 3e-6), row["variant"]
    assert "native kernels" in found["environment"]
    assert found["title"] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["conv", "linear"])
def test_rounds_are_checked(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rounds"):
        run(tmp_path, name, "--rounds", "0")
