"""Every option file that is shipped describes networks that can be built, in every mode; so does every table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from basicsr_quant.errors import UserError
from basicsr_quant.options.effective import effective_yaml, plain
from basicsr_quant.options.load import load_options, options_of
from basicsr_quant.options.presets import MODES
from basicsr_quant.options.source import Tree, parse
from basicsr_quant.options.types import Options
from basicsr_quant.registry import MODELS
from basicsr_quant.report.cells import expand, read_table

FOLDER = Path(__file__).parents[2] / "options"
FILES = sorted(file for part in ("train", "test") for file in (FOLDER / part).rglob("*.yml"))
TABLES = sorted((FOLDER / "tables").glob("*.yml"))
QUICK = ("_x2", "_tiny", "_quickstart")


def is_quick(file: Path) -> bool:
    """Whether a file is built in every run of the tests: one scale of each network."""
    return file.stem.endswith(QUICK) and file.parent.parent == FOLDER and file.stem.count("2DQuant") < 2


def with_speed(file: Path) -> Any:
    name = str(file.relative_to(FOLDER).with_suffix(""))
    return pytest.param(file, id=name, marks=() if is_quick(file) else pytest.mark.slow)


def complete(options: Options) -> Options:
    """Set the bit-width that some files leave to the command line."""
    bits = {"bit": 4} if getattr(options, "bit", 4) is None else {}
    return msgspec.structs.replace(options, **bits)


def networks(options: Options) -> dict[str, str]:
    """Return key -> weights of the networks that are recognised from a file, which the package does not bring."""
    blocks = {key: getattr(options, key) for key in options.__struct_fields__ if key.startswith("network_")}
    return {key: block.arguments["weights"] for key, block in blocks.items()
            if block is not None and block.type == "spandrel"}


def assert_builds(options: Options) -> None:
    """Build the networks without values; one that is recognised from a file may be refused for want of it."""
    absent = [file for file in networks(options).values() if not Path(file).is_file()]
    try:
        with torch.device("meta"):
            network = MODELS.get(options.model_type).skeleton(complete(options))
    except UserError as error:
        assert absent and absent[0] in str(error), error
    else:
        parameters = list(network.parameters())
        assert len(parameters) > 20 and all(parameter.is_meta for parameter in parameters)


@pytest.mark.parametrize("file", [with_speed(file) for file in FILES])
def test_networks_of_every_file(file: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    assert_builds(load_options(file, is_train=file.stem.startswith("train")))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["2DQuant_x2", "SwinIR_light_x2", "BI_DiffSR_tiny_x2", "OSEDiff_tiny",
                                  "PassionSR_tiny"])
def test_every_mode_of_every_method(name: str, mode: str) -> None:
    """Each key of a preset exists, and means the same when the effective options are read under no preset's mode."""
    options = load_options(FOLDER / "train" / f"train_{name}.yml", [f"mode={mode}"])
    values = parse(effective_yaml(options), "effective")
    assert values["mode"] == mode and plain(options_of(Tree("effective", values, {}))) == plain(options)


@pytest.mark.slow
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_cells_of_every_table(path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Effective options read back, and every different network can be built."""
    monkeypatch.chdir(repository)
    built: set[str] = set()
    for cell in expand(read_table(path), {}):
        for step, is_train in ((cell.train, True), (cell.test, False)):
            if step is None:
                continue
            options = load_options(step.opt, step.force, is_train=is_train)
            tree = Tree("effective", parse(effective_yaml(options), "effective"), {})
            assert options_of(tree, is_train) == options
            key = repr([getattr(options, name) for name in options.__struct_fields__ if name[:7] == "network"]
                       + [getattr(options, "bit", None)])
            if key not in built:
                built.add(key)
                assert_builds(options)
