"""Our own option files load, and the committed schema and table are those that the types give."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from basicsr_quant.cli.docs import add_parser, docs, generated
from basicsr_quant.options.load import datasets_of_phase, effective_yaml, load_options
from basicsr_quant.options.methods.tdquant import TDQuantOptions

FOLDER = Path(__file__).parents[2] / "options"
SETTINGS = [f"{kind}_x{scale}" for scale in (2, 3, 4) for kind in (
    "train/train_2DQuant", "test/test_2DQuant", "train/getcalidata_2DQuant", "train/train_SwinIR_light",
    "test/test_SwinIR_light")]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("t[re]*/**/*.yml")), ids=lambda file: file.stem)
def test_every_file_loads_and_is_read_back(file: Path, tmp_path: Path) -> None:
    is_train = file.stem.startswith("train")
    options = load_options(file, is_train=is_train)
    (tmp_path / "effective.yml").write_text(effective_yaml(options))
    assert load_options(tmp_path / "effective.yml", is_train=is_train) == options


@pytest.mark.parametrize("setting", SETTINGS)
def test_files_of_published_settings(setting: str) -> None:
    file = FOLDER / f"{setting}.yml"
    options = load_options(file, is_train="/train_" in setting)
    assert file.read_text().startswith("# yaml-language-server: $schema=../schema.json\n")
    assert options.mode == "corrected" and str(options.scale) == setting[-1]
    if "/train_" in setting:
        (_, train), (_, val) = *datasets_of_phase(options, "train"), *datasets_of_phase(options, "val")
        assert train.exclude_last == val.only_last == 20 and train.dataroot_gt == val.dataroot_gt
    if "/test_" in setting:
        assert all(data.optional for _, data in datasets_of_phase(options, "test"))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("mode", "iterations", "batch"), [("released", 4000, 16), ("paper", 3000, 32)])
def test_modes_of_own_files(scale: int, mode: str, iterations: int, batch: int) -> None:
    options = load_options(FOLDER / "train" / f"train_2DQuant_x{scale}.yml", [f"mode={mode}"])
    assert isinstance(options, TDQuantOptions) and options.train is not None
    assert options.train.total_iter == iterations and options.datasets["train"].batch_size_per_gpu == batch


def test_generated_files_are_up_to_date(repository: Path) -> None:
    for name, text in generated().items():
        assert (repository / name).read_text() == text, f"{name} is out of date; run: python -m basicsr_quant docs"


def test_the_verb_writes_them(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["docs", "--root", str(tmp_path)])
    assert arguments.func is docs and arguments.func(arguments) == 0
    assert {name: (tmp_path / name).read_text() for name in generated()} == generated()


def test_schema_and_table_hold_every_key() -> None:
    files = generated()
    schema = json.loads(files["options/schema.json"])
    definitions = schema["definitions"]
    assert definitions["TDQuantOptions"]["properties"]["bit"]["anyOf"][0]["maximum"] == 8
    assert definitions["TDQuantOptions"]["additionalProperties"] is False
    assert "train:optim_bound" in files["docs/options.md"]
    assert re.search(r"`train:total_iter`.*`4000`.*`3000`", files["docs/options.md"])
