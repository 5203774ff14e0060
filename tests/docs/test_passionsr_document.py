"""docs/passionsr.md: its tables are those of the code and of the option files."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from document_reader import REPOSITORY, error_fragments, package_source, table_rows

from basicsr_quant.cli import main as command_line
from basicsr_quant.options.load import load_options
from basicsr_quant.options.methods.passionsr import ORDERS, PassionSROptions, lengths_of, stages_of
from basicsr_quant.options.presets import MODES, presets_of

DOCUMENT = REPOSITORY / "docs" / "passionsr.md"
TRAIN, TEST = REPOSITORY / "options" / "train", REPOSITORY / "options" / "test"
BASELINES = TRAIN / "PassionSR_baselines"
PLAIN = ["quant:let:enabled=false", "quant:smooth:query_key=false"]
table = functools.partial(table_rows, DOCUMENT)


def loaded(file: Path, *force: str) -> PassionSROptions:
    options = load_options(file, force, is_train=file.is_relative_to(TRAIN))
    assert isinstance(options, PassionSROptions)
    return options


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def preset(model_type: str, mode: str, path: str) -> Any:
    """The value of a mode, or that of a file that says nothing."""
    *blocks, key = path.split(":")
    block = presets_of(model_type).block((mode, *blocks)) or {}
    if key in block:
        return block[key]
    options: Any = loaded(TEST / "test_PassionSR_UV_W8A8.yml", f"mode={mode}")
    for part in (*blocks, key):
        options = getattr(options, part)
    return options


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["type"])
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("row", [row for row in table("Modes", "key") if row[0].startswith("`quant:")],
                         ids=lambda row: row[0].strip("`"))
def test_values_of_the_modes(row: list[str]) -> None:
    for mode, cell in zip(MODES, row[1:], strict=True):
        value = preset("PassionSRModel", mode, row[0].strip("`"))
        assert quoted(cell)[0] == shown(value), mode
        if isinstance(value, dict) and "momentum" in value:
            assert f"momentum {value['momentum']}" in cell


def test_stages_of_the_modes() -> None:
    rows = {row[0]: row[1:] for row in table("Modes", "key") if not row[0].startswith("`quant:")}
    assert len(rows) == 6
    for mode, *cells in zip(MODES, *(rows[key] for key in rows if key != "what it follows"), strict=True):
        train = presets_of("PassionSRModel").block((mode, "train"))
        assert train is not None
        stages, (optim, loss, target, learns, during) = train["stages"], cells
        rate = f"{train['optim']['lr']:.0e}".replace("e-0", "e-")
        assert optim == f"{train['optim']['type']}, {rate}"
        assert quoted(loss)[0] == stages["unet_let"]["loss"]
        for part in ("encoder", "unet", "decoder"):
            assert quoted(during)[0] == stages[f"{part}_let"].get("bounds", "fixed")
            assert learns.replace(" ", "_") == stages[f"{part}_let"]["learn"]
            assert stages[f"{part}_bounds"].get("bounds", "fixed") == "fixed"
        assert ("in `alone_let`" in during) == (
            stages["alone_let"].get("bounds", "fixed") != stages["unet_let"].get("bounds", "fixed"))
        assert {quoted(target)[0]} == {stages[f"decoder_{kind}"].get("target", "teacher") for kind in ("let", "bounds")}


@pytest.mark.parametrize("row", table("Modes", "key of `pipeline`"), ids=lambda row: quoted(row[0])[0])
def test_pipelines_of_the_modes(row: list[str]) -> None:
    path = f"pipeline:{quoted(row[0])[0]}"
    for mode, cell in zip(MODES, row[1:], strict=True):
        own = cell.partition("(OSEDiff")[0]
        theirs = re.findall(r"\(OSEDiff: `?(\w+)", cell) or [re.findall(r"\w+", own)[0]]
        assert re.findall(r"\w+", own)[0] == shown(preset("PassionSRModel", mode, path)), mode
        assert theirs == [shown(preset("OSEDiffModel", mode, path))], mode


def test_stages_and_iterations_of_the_files() -> None:
    for row in table("Start", "files"):
        for name in quoted(row[0]):
            options = loaded(TRAIN / f"train_{name}.yml")
            lengths = lengths_of(options, 500)
            assert (row[2] == "full precision") == options.quant.only_unet
            assert (row[3], row[4]) == (str(len(lengths)), str(sum(lengths)))
    named = [name for row in table("Stages", "stage") for name in quoted(row[0])]
    assert named == [*ORDERS[False], *ORDERS[True]]


def test_what_can_be_left_out() -> None:
    orders = {}
    for row in table("Leave a part of the method out", "without"):
        options = loaded(TRAIN / "train_PassionSR_tiny.yml", *quoted(row[1])[0].split())
        orders[row[0]] = [name for name, _ in stages_of(options)]
    parts = ("encoder", "unet", "decoder")
    assert orders == {"LET": list(ORDERS[False]), "LBQ": [f"{part}_let" for part in parts],
                      "DQC": ["joint"], "anything learned": []}


def test_baselines_are_those_of_the_files() -> None:
    """What the table says of a file is in it, and a test with the named settings has its plan."""
    rows = table("The methods that it is compared with", "file in `options/train/PassionSR_baselines`")
    assert {quoted(row[0])[0] for row in rows} == {file.stem for file in BASELINES.glob("*.yml")}
    for row in rows:
        options = loaded(BASELINES / f"{quoted(row[0])[0]}.yml")
        quant = options.quant
        assert quoted(row[1]) == [quant.grid or "int_zero_point"]
        for observer in (quant.weight_observer, quant.activation_observer, quant.product_observer):
            assert quoted(row[2]) == [shown(observer)]
        learned = list(dict.fromkeys(stage.learn for _, stage in stages_of(options)))
        assert (quoted(row[3]) or ["nothing"]) == (learned or [row[3]])
        force = [*PLAIN, *(word for text in quoted(row[4]) for word in text.split()), "quant:weight_bits=4",
                 "quant:activation_bits=4"]
        tested = loaded(TEST / "test_PassionSR_tiny.yml", *force).quant
        for key in ("grid", "unet", "vae", "weight_bits", "activation_bits", "products", "zero_point_gradient"):
            assert getattr(tested, key) == getattr(quant, key), key
        assert not (quant.let.enabled or quant.smooth.query_key or tested.let.enabled or tested.smooth.query_key)


def test_errors_are_those_of_the_code() -> None:
    source, fragments = package_source(), error_fragments(table("What errors mean", "message"))
    assert len(fragments) > 12
    for fragment in fragments:
        assert fragment in source, f"no code says '{fragment}'"


@pytest.mark.slow
@pytest.mark.parametrize("row", table("Sizes", "option file"), ids=lambda row: f"{row[0]} {row[1]}".replace("`", ""))
def test_sizes(row: list[str], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    file, mode = TEST / f"{row[0].strip('`')}.yml", row[1].strip("`")
    out = tmp_path / "counted.json"
    assert command_line.main(["inspect", "-opt", str(file), "--json", str(out), "--force_yml", f"mode={mode}"]) == 0
    counted = json.loads(out.read_text())
    size = counted["packed_bytes"]
    assert row[2] == f"{size:,} ({size / 1e6:.0f} MB)"
    assert row[3] == f"{counted['float_bytes'] / size:.2f}x"
    assert f"{counted['parameters']:,} parameters, {counted['float_bytes']:,} bytes" in DOCUMENT.read_text()
