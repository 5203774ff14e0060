"""docs/bi_diffsr.md: its tables are those of the code and of the option files."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from document_reader import REPOSITORY, error_fragments, package_source, table_rows

from basicsr_quant.archs.build import build_network
from basicsr_quant.options.load import load_options
from basicsr_quant.options.methods.bi_diffsr import BIDiffSROptions
from basicsr_quant.options.presets import MODES, presets_of
from basicsr_quant.quant.binary.accounting import account_step
from basicsr_quant.quant.conventions import BI_DIFFSR

DOCUMENT = REPOSITORY / "docs" / "bi_diffsr.md"
table = functools.partial(table_rows, DOCUMENT)
TRAIN = REPOSITORY / "options" / "train"
BASELINES = TRAIN / "BI_DiffSR_baselines"
FILES = {"BI-DiffSR": TRAIN / "train_BI_DiffSR_x2.yml",
         **{name: BASELINES / f"train_{name}_x2.yml" for name in ("SR3", "BNN", "ReActNet", "BBCU")}}


def loaded(file: Path) -> BIDiffSROptions:
    options = load_options(file)
    assert isinstance(options, BIDiffSROptions)
    return options


@pytest.mark.parametrize("row", table("Parameters and operations", "network"), ids=lambda row: row[0])
def test_counts(row: list[str]) -> None:
    network = loaded(FILES[row[0]]).network_g
    with torch.device("meta"):
        step = account_step(build_network(network.type, network.arguments), (1, 3, 256, 256))
    parameters, operations = BI_DIFFSR.parameters(step), BI_DIFFSR.operations(step)
    assert row[1] == f"{parameters.printed(1e6):.2f}"
    assert row[2].split(" ")[0] == f"{operations.printed(1e9):.2f}"
    assert row[3:] == [f"{step.account.float_bytes:,}", f"{step.account.packed_bytes:,}",
                       f"{step.binary_macs / 1e9:.3f}", f"{step.float_macs / 1e9:.3f}"]


def test_modes_are_those_of_the_presets() -> None:
    """Each cell begins with the value that the preset has under the key of its row."""
    presets = presets_of("BIDiffSRModel")
    rows = [row for row in table("Modes", "key") if row[0].startswith("`")]
    assert len(rows) == 6
    for row in rows:
        block, key = re.findall(r"`([^`]*)`", row[0])[0].split(":")
        for mode, cell in zip(MODES, row[1:], strict=True):
            value = (presets.block((mode, block)) or {}).get(key)
            assert cell.replace("`", "").split(":")[0] == ("none" if value is None else str(value)), (mode, key)


@pytest.mark.parametrize(("folder", "scales"), [("BI_DiffSR_baselines", "x2, x4"), ("BI_DiffSR_ablations", "x2")])
def test_every_option_file_has_its_row(folder: str, scales: str) -> None:
    named = {row[0].strip("`") for row in table("The tables' other rows", f"file in `{folder}` ({scales})")}
    present = {file.stem.rpartition("_")[0] for file in (TRAIN / folder).glob("*.yml")}
    assert named == present


def test_baselines_are_those_of_the_files() -> None:
    for row in table("The tables' other rows", "file in `BI_DiffSR_baselines` (x2, x4)"):
        network = loaded(BASELINES / f"{row[0].strip('`')}_x2.yml").network_g
        named = re.findall(r"`(\w+)`", row[1])
        assert named[-1] == network.arguments.get("binarizer", network.type)


def test_errors_are_those_of_the_code() -> None:
    source, fragments = package_source(), error_fragments(table("What errors mean", "message"))
    assert len(fragments) == 5
    for fragment in fragments:
        assert fragment in source, f"no code says '{fragment}'"
