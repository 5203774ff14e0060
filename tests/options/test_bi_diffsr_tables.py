"""Option files of BI-DiffSR's two tables: they load, and their networks have the published size."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from basicsr_quant.archs.build import build_network
from basicsr_quant.options.load import effective_yaml, load_options
from basicsr_quant.options.methods.bi_diffsr import BIDiffSROptions
from basicsr_quant.quant.binary.accounting import StepAccount, account_step
from basicsr_quant.quant.conventions import BI_DIFFSR

FOLDER = Path(__file__).parents[2] / "options" / "train"

# Rows of table 1: option file, ablation and variant, million parameters, billion operations
ABLATIONS = [
    ("plain", "breakdown", "Baseline", 4.29, 36.67),
    ("identity", "breakdown", "+Identity", 4.29, 36.67),
    ("concat", "breakdown", "+CP-Down&Up", 4.29, 36.67),
    ("K1", "breakdown", "+CS-Fusion", 4.30, 36.67),
    ("K5", "breakdown", "+TaR&TaA", 4.58, 36.67),
    ("add", "fusion", "Add", 4.10, 33.40),
    ("concat", "fusion", "Concat", 4.29, 36.67),
    ("split", "fusion", "Split", 4.30, 36.67),
    ("K1", "fusion", "CS-Fusion", 4.30, 36.67),
    ("K1", "timestep", "w/o", 4.30, 36.67),
    ("TaR", "timestep", "In", 4.37, 36.67),
    ("TaA", "timestep", "Out", 4.51, 36.67),
    ("K5", "timestep", "All", 4.58, 36.67),
    ("K1", "pairs", "1", 4.30, 36.67),
    ("K2", "pairs", "2", 4.37, 36.67),
    ("K5", "pairs", "5", 4.58, 36.67),
]
# Rows of table 2, and by how much the operations of our networks differ, which for the baselines are reconstructions
METHODS = [
    ("SR3", 55.41, 176.41, 0.0),
    ("BNN", 4.78, 37.93, 0.03),
    ("DoReFa", 4.78, 37.93, 0.03),
    ("XNOR", 4.78, 37.93, 0.03),
    ("IRNet", 4.78, 37.93, 0.03),
    ("ReActNet", 4.85, 37.93, 0.03),
    ("BBCU", 4.82, 37.75, 0.02),
    ("BI_DiffSR", 4.58, 36.67, 0.0),
]


def file_of(name: str, scale: int) -> Path:
    folder = FOLDER if name == "BI_DiffSR" else FOLDER / "BI_DiffSR_baselines"
    return folder / f"train_{name}_x{scale}.yml"


def ablation_file(name: str) -> Path:
    return FOLDER / "BI_DiffSR_ablations" / f"train_BI_DiffSR_{name}_x2.yml"


def loaded(file: Path, mode: str = "corrected") -> BIDiffSROptions:
    options = load_options(file, [f"mode={mode}"])
    assert isinstance(options, BIDiffSROptions)
    return options


@cache
def counted(file: Path) -> StepAccount:
    """Count one step at the paper's 256 x 256."""
    network = loaded(file).network_g
    with torch.device("meta"):
        return account_step(build_network(network.type, network.arguments), (1, 3, 256, 256))


@pytest.mark.parametrize(("name", "variant", "parameters", "operations"), [(row[0], *row[2:]) for row in ABLATIONS],
                         ids=[f"{row[1]}-{row[2]}" for row in ABLATIONS])
def test_ablation(name: str, variant: str, parameters: float, operations: float) -> None:
    file = ablation_file(name)
    assert f'"{variant}"' in file.read_text().splitlines()[1]
    assert BI_DIFFSR.parameters(counted(file)).printed(1e6) == parameters
    assert BI_DIFFSR.operations(counted(file)).printed(1e9) == operations


@pytest.mark.parametrize(("name", "parameters", "operations", "less"), METHODS, ids=[row[0] for row in METHODS])
def test_method(name: str, parameters: float, operations: float, less: float) -> None:
    step = counted(file_of(name, 2))
    assert BI_DIFFSR.parameters(step).printed(1e6) == parameters
    assert BI_DIFFSR.operations(step).printed(1e9) == pytest.approx(operations - less, abs=1e-9)
    assert loaded(file_of(name, 2)).network_g == loaded(file_of(name, 4)).network_g


@pytest.mark.parametrize("mode", ["released", "paper", "corrected"])
@pytest.mark.parametrize("scale", [2, 4])
def test_all_train_alike(mode: str, scale: int) -> None:
    """Rows of a table differ in network and name only; the ablation takes half the iterations."""
    ours = loaded(file_of("BI_DiffSR", scale), mode)
    assert ours.train is not None and ours.train.total_iter == 1_000_000
    files = [file_of(name, scale) for name, *_ in METHODS]
    assert set(FOLDER.glob("BI_DiffSR_baselines/*")) >= set(files[:-1])
    for file in files:
        assert replace(loaded(file, mode), name=ours.name, network_g=ours.network_g) == ours
    if scale == 2:
        assert set(FOLDER.glob("BI_DiffSR_ablations/*")) == {ablation_file(name) for name, *_ in ABLATIONS}
        for name, *_ in ABLATIONS:
            options = loaded(ablation_file(name), mode)
            assert replace(options, name=ours.name, network_g=ours.network_g, train=ours.train) == ours
            assert options.train == replace(ours.train, total_iter=500_000)
            assert options.network_g.type == ours.network_g.type
            for argument in ("sign_zero", "group_choice"):
                assert options.network_g.arguments[argument] == ours.network_g.arguments[argument]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("BI_DiffSR_*/*.yml")), ids=lambda file: file.stem)
def test_files_are_those_of_the_house(file: Path, tmp_path: Path) -> None:
    options = loaded(file)
    assert options.name == file.stem and file.stem.endswith(f"_x{options.scale}")
    assert file.read_text().startswith("# yaml-language-server: $schema=../../schema.json\n")
    (tmp_path / "effective.yml").write_text(effective_yaml(options))
    assert load_options(tmp_path / "effective.yml") == options
