"""PassionSR's table 2 as data: every published row, baselines as on the small network, and what is missing is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from basicsr_quant.cli.main import main
from basicsr_quant.io.images import write_image
from basicsr_quant.options.load import load_options
from basicsr_quant.options.methods.osediff import OSEDiffOptions
from basicsr_quant.options.methods.passionsr import PassionSROptions, lengths_of, stages_of
from basicsr_quant.report.cells import Cell, TableFile, Value, expand, read_table
from basicsr_quant.report.markdown import published_numbers

REPOSITORY = Path(__file__).parents[2]
TABLE = REPOSITORY / "options" / "tables" / "PassionSR_table2.yml"
BASELINES = REPOSITORY / "options" / "train" / "PassionSR_baselines"
FILES = {"MaxMin": "MaxMin", "LSQ": "LSQ", "Q-Diffusion": "Q_Diffusion", "EfficientDM": "EfficientDM"}
SETTINGS = [("UV", 8), ("UV", 6), ("U", 8), ("U", 6)]
REALSR = "datasets/benchmark/RealSR/test"


@pytest.fixture(scope="module")
def table() -> TableFile:
    return read_table(TABLE)


@pytest.fixture
def cells(table: TableFile, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[Value, ...], Cell]:
    monkeypatch.chdir(REPOSITORY)
    return {tuple(cell.labels.values()): cell for cell in expand(table, {"rounding": 50, "steps": 50})}


def training(cell: Cell) -> PassionSROptions:
    assert cell.train is not None
    options = load_options(cell.train.opt, cell.train.force)
    assert isinstance(options, PassionSROptions)
    return options


def test_every_published_row_is_a_cell(table: TableFile, cells: dict[tuple[Value, ...], Cell]) -> None:
    """But for OSEDiff with its prompts, which are not offered."""
    rows = published_numbers(table.published)
    published = {(row["method"], row["bits"]) for row in rows} - {("OSEDiff", "W32A32")}
    asked = [tuple(cell.published.values()) for cell in cells.values() if cell.published]
    assert len(asked) == len(set(asked)) == 11 and set(asked) == published
    methods = [*FILES, "PassionSR"]
    quantized = {(method, part, f"W{bit}A{bit}") for method in methods for part, bit in SETTINGS}
    assert set(cells) == quantized | {("PassionSR-FP", "nothing", "W32A32")}
    assert set(table.metrics) <= set(rows[0])
    for cell in cells.values():
        options = load_options(cell.test.opt, cell.test.force, is_train=False)
        assert options.val is not None and list(options.val.metrics) == list(table.metrics)
        assert {data.name for data in options.datasets.values()} == {row["dataset"] for row in rows}
        lower = {name for name, metric in options.val.metrics.items() if metric.better == "lower"}
        assert lower == {"lpips", "dists", "niqe"}


@pytest.mark.parametrize(("part", "bit"), SETTINGS)
def test_all_measure_alike(cells: dict[tuple[Value, ...], Cell], part: str, bit: int) -> None:
    full = cells["PassionSR-FP", "nothing", "W32A32"]
    reference = load_options(full.test.opt, full.test.force, is_train=False)
    assert isinstance(reference, OSEDiffOptions)
    for method in (*FILES, "PassionSR"):
        cell = cells[method, part, f"W{bit}A{bit}"]
        tested, trained = load_options(cell.test.opt, cell.test.force, is_train=False), training(cell)
        assert isinstance(tested, PassionSROptions)
        assert tested.pipeline == trained.pipeline == reference.pipeline and tested.pipeline.tiles.latent == 64
        assert (tested.datasets, tested.val) == (reference.datasets, reference.val)
        for options in (tested, trained):
            quant = options.quant
            assert (quant.weight_bits, quant.activation_bits, quant.only_unet) == (bit, bit, part == "U")
        for key in ("grid", "unet", "vae", "let", "smooth", "products", "zero_point_gradient"):
            assert getattr(tested.quant, key) == getattr(trained.quant, key), (method, key)


@pytest.mark.parametrize("method", FILES)
def test_baselines_are_those_of_the_small_network(cells: dict[tuple[Value, ...], Cell], method: str) -> None:
    """Quantization and stages, but for rates and lengths, are those of the small network's file; U has the UNet's."""
    small = load_options(BASELINES / f"train_{FILES[method]}_tiny.yml")
    assert isinstance(small, PassionSROptions)
    for part, bit in SETTINGS:
        options = training(cells[method, part, f"W{bit}A{bit}"])
        calibration = replace(options.quant.calibration, images=32, batch_size=8)
        assert replace(options.quant, weight_bits=4, activation_bits=4, only_unet=False,
                       calibration=calibration) == small.quant
        wanted = [(name, replace(stage, optim=None)) for name, stage in stages_of(small)
                  if part == "UV" or stage.component == "unet"]
        assert [(name, replace(stage, optim=None)) for name, stage in stages_of(options)] == wanted


def test_lengths(cells: dict[tuple[Value, ...], Cell]) -> None:
    """1000 iterations of every stage that is no block's, as in the published files."""
    for (method, part, _), cell in cells.items():
        if method in ("LSQ", "EfficientDM", "PassionSR"):
            count = {"PassionSR": 6, "LSQ": 3, "EfficientDM": 3}[str(method)] if part == "UV" else 0
            count = count or (2 if method == "PassionSR" else 1)
            assert lengths_of(training(cell), 480) == [1000] * count


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without data and weights."""
    (tmp_path / "options").symlink_to(REPOSITORY / "options")
    for name in ("train.py", "test.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_without_anything(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours is not there, the paper's is, and so is what is missing."""
    command = ["table", "show", "PassionSR_table2", "--cells", "method=PassionSR,bits=W6A6", "--csv", "table.csv"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.strip("| ").split(" | ") for line in lines if line.startswith("| PassionSR")]
    assert [row[:4] for row in shown] == [["PassionSR", part, "W6A6", data] for part in ("UV", "U")
                                          for data in ("RealSR", "DRealSR", "DIV2K_val")]
    assert shown[0][4:] == ["(paper 25.15)", "(paper 0.7196)", "(paper 0.4199)", "(paper 0.2592)", "(paper 8.618)",
                            "(paper 44.43)", "(paper 0.2131)", "(paper 0.4612)", "not run: lacks 1 2 3 4 5 6 7 8 9 10"]
    assert "".join(shown[3][4:12]).strip() == ""
    missing = lines[lines.index("Missing:") + 2:]
    assert missing[:4] == [
        "1. datasets:train 'datasets/calibration/hr'", "2. datasets:train 'datasets/calibration/lr'",
        "3. path:sd 'experiments/pretrained_models/stable-diffusion-2-1-base'",
        "4. path:osediff 'experiments/pretrained_models/osediff.pkl'"]
    assert len(missing) == 10 and f"5. datasets:test_1 '{REALSR}/HR'" in missing
    assert f"path:osediff 'experiments/pretrained_models/osediff.pkl'; datasets:test_1 '{REALSR}/HR'" in Path(
        "table.csv").read_text()


@pytest.mark.parametrize(("cells", "named"), [
    ("method=PassionSR,quantized=U,bits=W8A8", "datasets/calibration/lr"),
    pytest.param("method=PassionSR-FP", f"{REALSR}/HR", marks=pytest.mark.slow),
    pytest.param("method=PassionSR-FP", "experiments/pretrained_models/stable-diffusion-2-1-base",
                 marks=pytest.mark.slow)])
def test_run_without_anything(empty: Path, cells: str, named: str) -> None:
    """One line at the end names the file."""
    if "pretrained" in named:
        write_image(empty / REALSR / "HR" / "a.png", np.zeros((64, 64, 3), np.uint8))
        write_image(empty / REALSR / "LR" / "X4" / "a.png", np.zeros((16, 16, 3), np.uint8))
    command = [sys.executable, "-m", "basicsr_quant", "table", "run", "PassionSR_table2", "--cells", cells]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    last = finished.stderr.splitlines()[-1]
    assert finished.returncode == 2 and "Traceback" not in finished.stderr
    assert last.startswith("error: 1 of 1 cells failed; first: PassionSR") and f"'{named}" in last
