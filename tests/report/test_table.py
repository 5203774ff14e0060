"""Tables: cells from a file, run once each, shown beside published numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from workshop import Workshop

from basicsr_quant.cli.main import main
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.images import read_image
from basicsr_quant.options.load import load_options
from basicsr_quant.report.cells import expand, read_table
from basicsr_quant.report.curves import statistics, training_curves
from basicsr_quant.report.inputs import content_digests, missing, weight_files
from basicsr_quant.report.markdown import markdown, published_numbers
from basicsr_quant.report.table import TableRun, select

TABLES = sorted((Path(__file__).parents[2] / "options" / "tables").glob("*.yml"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_shipped_tables_load(path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    table = read_table(path)
    cells = list(expand(table, {}))
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        load_options(cell.test.opt, cell.test.force, is_train=False)
        if cell.train is not None:
            load_options(cell.train.opt, cell.train.force, is_train=True)


def test_published_numbers_are_the_papers() -> None:
    rows = published_numbers("2dquant_table3.csv")
    assert len(rows) == 265
    wanted = {"scale": "4", "bit": "2", "method": "2DQuant", "dataset": "Set5", "psnr": "29.53"}
    assert [row for row in rows if wanted.items() <= row.items()]


def table_file(folder: Path, **changes: Any) -> str:
    cells = [
        {"labels": {"method": "FP", "bit": 32}, "test": {"opt": "test_it.yml", "force": ["quant:fp_test=true"]}},
        {"labels": {"method": "broken", "bit": 3}, "test": {"opt": "test_it.yml", "force": ["bit=3"]}},
        {"labels": {"method": "2DQuant", "bit": "{bit}"}, "each": {"bit": [3, 4]},
         "train": {"opt": "train_it.yml", "force": ["bit={bit}", "train:total_iter={iterations}"]},
         "test": {"opt": "test_it.yml", "force": ["bit={bit}"]}},
    ]
    content = {"name": "small", "title": "Small", "protocol": "{iterations} iterations", "settings": {"iterations": 4},
               "budgets": {"less": {"iterations": 2}}, "cells": cells, **changes}
    path = folder / "small.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def test_cells_run_once_and_failures_stop_nothing(place: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    path = table_file(place.folder)
    assert main(["table", "run", path, "--markdown", "table.md", "--csv", "table.csv"]) == 2
    output = capsys.readouterr()
    assert "1 of 4 cells failed" in output.err and "cali_data is missing" in output.err
    assert "4 iterations" in output.out and "| broken | 3 |  | not run |" in output.out
    assert (place.folder / "table.md").read_text() in output.out
    results = place.folder / "results" / "tables" / "small"
    stamps = {file.name: file.stat().st_mtime_ns for file in results.glob("*.json")}
    assert {name.rpartition("-")[0] for name in stamps} == {"FP-32", "2DQuant-3", "2DQuant-4"}
    content = json.loads(next(results.glob("2DQuant-3-*.json")).read_text())
    assert set(content["metrics"]["val"]) == {"psnr", "ssim"} and content["minutes"] >= content["train_minutes"] > 0

    assert main(["table", "run", path]) == 2
    assert {file.name: file.stat().st_mtime_ns for file in results.glob("*.json")} == stamps
    assert main(["table", "run", path, "--budget", "less", "--cells", "method=2DQuant,bit=3"]) == 0
    assert len(list(results.glob("2DQuant-3-*.json"))) == 2
    trainings = results.glob("experiments/2DQuant-3-*")
    assert {len(list(training.glob("training_states/*.state"))) for training in trainings} == {1, 2}
    capsys.readouterr()
    assert main(["table", "show", path, "--cells", "bit=3", "--set", "iterations=3"]) == 0
    assert "| 2DQuant | 3 | not run |" in capsys.readouterr().out


def test_average_over_seeds(place: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [{"labels": {"method": "{name}", "seed": "{seed}"}, "each": {"seed": [1, 2]},
              "variants": [[{"name": "a", "more": ["bit={bit}", "quant:learn:minimum_width=0"]},
                            {"name": "b", "more": []}]],
              "train": {"opt": "train_it.yml", "force": ["{more}", "manual_seed={seed}", "train:total_iter=1"]},
              "test": {"opt": "test_it.yml"}}]
    path = table_file(place.folder, cells=cells, average="seed", settings={"iterations": 1, "bit": 3})
    first = next(expand(read_table(path), {}))
    assert first.train is not None and first.train.force[:2] == ["bit=3", "quant:learn:minimum_width=0"]
    assert main(["table", "run", path, "--cells", "method=a"]) == 0
    capsys.readouterr()
    assert main(["table", "show", path]) == 0
    results = [json.loads(file.read_text()) for file in place.folder.glob("results/tables/small/*.json")]
    values = [result["metrics"]["val"]["psnr"] for result in results]
    assert len(values) == 2 and values[0] != values[1]
    wanted = f"| a | {sum(values) / 2:.2f} ± {abs(values[0] - values[1]) / 2**0.5:.3f} / "
    shown = capsys.readouterr().out
    assert wanted in shown and "| b |  | 0 | not run |" in shown


def test_published_numbers_and_what_is_missing(place: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a cell is run the paper's numbers and its missing inputs are shown, then ours and the difference."""
    set5 = ["datasets:test_1:name=Set5", "quant:fp_test=true", "pathFP:pretrain_network_FP={weights}"]
    cells = [{"labels": {"method": "FP"}, "each": {"weights": ["weights/fp.pth", "nowhere.pth"]},
              "test": {"opt": "test_it.yml", "force": set5},
              "published": {"scale": 4, "bit": 2, "method": "2DQuant"}}]
    path = table_file(place.folder, cells=cells, published="2dquant_table3.csv", average="method")
    assert main(["table", "show", path, "--csv", "table.csv"]) == 0
    shown = capsys.readouterr().out
    assert "| Set5 | runs | training minutes |" in shown
    assert "| (paper 29.53 / 0.8372) | 0 | not run: lacks 1 |" in shown
    assert shown.endswith("Missing:\n\n1. pathFP:pretrain_network_FP 'nowhere.pth'\n")
    assert "not run: pathFP:pretrain_network_FP 'nowhere.pth'" in Path("table.csv").read_text()
    table = read_table(path)
    cell = next(expand(table, {}))
    run = TableRun(table, [cell], "")
    write_text(run._file(cell), json.dumps({
        "metrics": {"Set5": {"psnr": 28.53, "ssim": 0.8}}, "train_minutes": 2, "resumed": True}))
    assert "| 28.53 / 0.8000 (paper 29.53, -1.00) | 1 | ≥ 2.0 |" in markdown(run)


def test_inputs_of_a_cell(place: Workshop) -> None:
    """A folder counts by what is in it, what the training makes does not count."""
    table = read_table(table_file(place.folder))
    cell = list(expand(table, {}))[-1]
    assert missing(cell) == []
    assert cell.train is not None and list(weight_files(load_options(cell.train.opt), True)) == [
        "pathFP:pretrain_network_FP"]
    files = {"path:sd": "folder", "cali_data": "absent.pth"}
    digests = [list(content_digests(files))]
    Path("folder").mkdir()
    for content in (None, "a", "ab", "cd"):
        if content is not None:
            Path("folder/weights").write_text(content)
        digests.append(list(content_digests(files)))
    assert [digest[0] for digest in digests] == ["absent"] * 5
    assert [len({digest[1] for digest in digests[:count]}) for count in range(1, 6)] == [1, 2, 3, 4, 4]


def test_curves(place: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop_options = place.dqc
    workshop_options["logger"]["use_tb_logger"] = True
    workshop_options["val"]["val_freq"] = 1
    place.write(workshop_options, "train_it")
    path = table_file(place.folder, average="bit")
    assert main(["table", "curves", path, "--png", "curves.png"]) == 2
    assert "no training of 'small' recorded 'psnr'" in capsys.readouterr().err
    assert main(["table", "run", path, "--cells", "method=2DQuant"]) == 0
    table = read_table(path)
    run = TableRun(table, select(expand(table, {}), {"method": "2DQuant"}), "")
    curves = training_curves(run, "psnr")
    assert list(curves) == ["2DQuant"] and [list(curve) for curve in curves["2DQuant"]] == [[1, 2, 3, 4]] * 2
    log = (next(place.folder.glob("results/tables/small/experiments/2DQuant-3-*")) / "models").parent
    logged = re.findall(r"iteration 4: psnr ([\d.]+)", next(log.glob("*.log")).read_text())
    assert curves["2DQuant"][0][4] == pytest.approx(float(logged[-1]), abs=1e-3)
    assert main(["table", "curves", path, "--png", "curves.png", "--cells", "method=2DQuant"]) == 0
    image = read_image(place.folder / "curves.png")
    assert image.shape[2] == 3 and image.std() > 1
    assert main(["table", "curves", path]) == 2
    assert "--png is missing" in capsys.readouterr().err


def test_spread_of_curves() -> None:
    steps, mean, spread = statistics([{1: 1.0, 2: 2.0}, {1: 3.0, 2: 2.0, 3: 9.0}])
    assert steps == [1, 2] and mean.tolist() == [2.0, 2.0]
    assert spread.tolist() == [pytest.approx(2**0.5), 0.0]


def test_bad_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="small.yml"):
        read_table(table_file(tmp_path, colour="red"))
    table = read_table(table_file(tmp_path, settings={}))
    with pytest.raises(UserError, match="iterations"):
        list(expand(table, {}))
    cells = list(expand(table, {"iterations": 1}))
    assert [cell.name for cell in select(cells, {"bit": "4"})] == ["2DQuant-4"]
    with pytest.raises(UserError, match="no cell has bit=7"):
        select(cells, {"bit": "7"})
    assert main(["table", "show", "nothing"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["table", "show", table_file(tmp_path), "--budget", "huge"]) == 2
    assert "known: less" in capsys.readouterr().err
