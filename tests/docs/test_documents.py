"""README and docs: links, commands, code and numbers are true."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from document_reader import (
    DOCUMENTS,
    REPOSITORY,
    WITH_COMMANDS,
    Command,
    anchors,
    blocks,
    commands,
    links,
    new_files,
    new_lines,
    without_blocks,
)
from workshop import Workshop, common_options, make_pairs, smooth_image

from basicsr_quant.archs.build import build_network
from basicsr_quant.cli import main as command_line
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.images import read_image, write_image
from basicsr_quant.models.tdquant import TDQuantModel
from basicsr_quant.options.load import load_options, parse_arguments
from basicsr_quant.quant.accounting import account
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.conventions import HONEST, swinir_light_conventions
from basicsr_quant.registry import MODELS

EXTENDING = REPOSITORY / "docs" / "extending.md"
OWN_MODEL = REPOSITORY / "docs" / "quantize_your_own_model.md"
TDQUANT = REPOSITORY / "docs" / "2dquant.md"
CRAFT_OPTIONS = REPOSITORY / "options" / "train" / "train_2DQuant_CRAFT_x4.yml"
MODULE = ("python", "-m", "basicsr_quant")
EVERY_COMMAND = commands()
VERB_COMMANDS = [command for command in EVERY_COMMAND if command.words[:3] == MODULE]


@pytest.fixture
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{document.name} links to '{link}', which is not there"
        if anchor:
            assert anchor in anchors(target), f"{document.name} links to '{link}', a heading that is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_paths_of_a_machine(document: Path) -> None:
    assert not re.search(r"(?<![\w.])/(work|home|root|opt|tmp|usr|mnt)\b|\bshared/", document.read_text())


def parse_verb(words: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in command_line.VERBS:
        importlib.import_module(f"basicsr_quant.cli.{verb.replace('-', '_')}").add_parser(verbs)
    return parser.parse_args(words)


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=str)
def test_command(command: Command, in_repository: None) -> None:
    """Scripts and option files exist, arguments parse, settings load."""
    words = command.words
    if words[0] == "bash":
        assert subprocess.run(["bash", "-n", words[1]], check=False).returncode == 0, words[1]
    elif words[:3] == MODULE:
        arguments = parse_verb(words[3:])
        if getattr(arguments, "opt", None):
            load_options(arguments.opt, arguments.force_yml, is_train=arguments.verb == "calibration-data")
    else:
        assert words[0] in ("python", "torchrun"), f"{command}: what is '{words[0]}'?"
        place = next(index for index, word in enumerate(words) if word in ("train.py", "test.py"))
        is_train = words[place] == "train.py"
        given = parse_arguments(words[place + 1:], is_train)
        load_options(given.opt, given.force_yml, given.debug, is_train)
        assert (given.launcher == "pytorch") == (words[0] == "torchrun")


@pytest.mark.parametrize("script", sorted(set(re.findall(
    r"`bash (scripts/[\w-]+\.sh)", "".join(path.read_text() for path in WITH_COMMANDS)))))
def test_scripts_named_in_the_text_exist(script: str) -> None:
    assert (REPOSITORY / script).is_file()


@pytest.mark.parametrize("file", sorted(set(re.findall(
    r"`((?:options|basicsr_quant|datasets|experiments)/[\w/.-]+\.(?:yml|py|json|md))`",
    "".join(without_blocks(path.read_text()) for path in WITH_COMMANDS if path.name != "results.md")))))
def test_files_named_in_the_text_exist(file: str) -> None:
    assert (REPOSITORY / file).is_file() or file in new_files(EXTENDING)


@pytest.fixture(scope="module")
def walk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's folders with tiny images where the documents look for them."""
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(REPOSITORY / "options", folder / "options")
    generator = np.random.default_rng(0)
    for place, stems in (("datasets/DF2K/HR", ("0001", "0002")), ("datasets/BSDS400/HR", ("0001", "0002")),
                         ("datasets/benchmark/Set5/HR", ("baby", "bird")), ("my_results/Set5", ("baby", "bird"))):
        for stem in stems:
            write_image(folder / place / f"{stem}.png", smooth_image(generator, 40, 36))
    for stem in ("babyx4", "birdx4"):
        write_image(folder / "datasets/benchmark/Set5/LR_bicubic/X4" / f"{stem}.png", smooth_image(generator, 10, 9))
    write_quantized_weights(folder / "experiments/train_2DQuant_x4_bit4/models/net_Q_best.pth")
    run = folder / "results/quickstart/FP"
    write_image(run / "visualization/photographs/chelsea_FP.png", smooth_image(generator, 40, 36))
    write_text(run / "metrics.json", '{"photographs": {"mean": {"psnr": 30.0}, "images": 1, "seconds": 2.0}}')
    return folder


def write_quantized_weights(path: Path) -> None:
    """Write a random SwinIR-light x4 whose tensors are all rounded between -1 and 1."""
    options = load_options(REPOSITORY / "options/train/train_2DQuant_x4.yml", ["bit=4", "num_gpu=0"])
    torch.manual_seed(0)
    network = TDQuantModel.skeleton(options)
    for _, quantizer in named_quantizers(network):
        quantizer.set_bounds(torch.tensor(-1.0), torch.tensor(1.0))
    model = TDQuantModel(options, torch.device("cpu"))
    path.parent.mkdir(parents=True)
    torch.save({"params": model.export_state("Q", network)}, path)


def run_verb(command: Command) -> int:
    return command_line.main(list(command.words[3:]))


@pytest.mark.parametrize("command", [command for command in VERB_COMMANDS if "CRAFT" not in " ".join(command.words)],
                         ids=str)
def test_verb_runs(command: Command, walk_folder: Path, monkeypatch: pytest.MonkeyPatch,
                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(walk_folder)
    assert run_verb(command) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    arguments = parse_verb(command.words[3:])
    if arguments.verb == "prepare-data":
        for scale in arguments.scale:
            assert (walk_folder / arguments.out / f"LR_bicubic/X{scale}/0002x{scale}.png").is_file()
    elif arguments.verb == "evaluate":
        assert "on Y" in printed and "2 of 2 images" in printed
        assert Path(arguments.csv).read_text().startswith("image,psnr,ssim\nbaby.png,")
    elif arguments.verb == "inspect":
        is_step = "BI_DiffSR" in arguments.opt
        assert ("image 256x256, one denoising step" if is_step else "input 128x128; parameters 929,628") in printed
        assert arguments.json is None or arguments.json.is_file()
    elif arguments.verb == "docs":
        for name in ("options/schema.json", "docs/options.md"):
            assert (walk_folder / name).read_text() == (REPOSITORY / name).read_text()
    elif arguments.verb == "pack":
        assert f"{arguments.output.stat().st_size:,} bytes on disk" in printed
    elif arguments.verb == "infer":
        assert {path.name for path in arguments.output.iterdir()} == {"babyx4.png", "birdx4.png"}
        assert read_image(arguments.output / "birdx4.png").shape == (40, 36, 3)
    elif arguments.verb == "export":
        assert "48 x 48 -> 1 x 3 x 192 x 192" in printed and arguments.output.is_file()
    elif arguments.verb == "table":
        assert "## 2DQuant" in printed
    elif arguments.verb == "analyse":
        assert "SQNR of the output" in printed
        assert (walk_folder / "results/test_2DQuant_x4/analysis.json").is_file()
    elif arguments.verb == "report":
        assert "photographs" in (walk_folder / arguments.output / "index.html").read_text()
    else:
        raise AssertionError(f"{command}: a verb that this test does not know")


def test_inspect_of_craft_prints_what_the_document_shows(
        data_root: Path, walk_folder: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(walk_folder)
    weights = walk_folder / "experiments/pretrained_models/CRAFT_x4.pth"
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data_root / "weights" / "CRAFT_x4.pth", weights)
    [command] = [command for command in VERB_COMMANDS
                 if "inspect" in command.words and "CRAFT" in " ".join(command.words)]
    assert run_verb(command) == 0
    printed = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    [shown] = blocks(OWN_MODEL, "text")
    lines = [" ".join(line.split()) for line in shown.splitlines() if line != "..."]
    assert len(lines) > 5
    assert set(lines) <= printed


def test_craft_plan_is_that_of_its_option_file() -> None:
    shown = next(block for block in blocks(OWN_MODEL, "yaml") if "srwa_blocks" in block)
    assert yaml.safe_load(shown)["quant"] == yaml.safe_load(CRAFT_OPTIONS.read_text())["quant"]


def test_edsr_example_trains_and_tests(workshop: Workshop) -> None:
    text = next(block for block in blocks(OWN_MODEL, "yaml") if "basicsr:EDSR" in block)
    Path("my_EDSR_x4.yml").write_text(text)
    options = yaml.safe_load(text)
    assert options["model_type"] == "TDQuantModel" and options["bit"] == 4
    network = {**options["network_Q"], "num_feat": 8, "num_block": 2, "upscale": 2}
    torch.manual_seed(0)
    arguments = {key: value for key, value in network.items() if key != "type"}
    weights = {"params": build_network(network["type"], arguments).state_dict()}
    Path("experiments/pretrained_models").mkdir(parents=True)
    torch.save(weights, options["pathFP"]["pretrain_network_FP"])
    small = ["scale=2", "num_gpu=0", "network_Q:num_feat=8", "network_Q:num_block=2", "network_Q:upscale=2",
             "datasets:train:dataroot_gt=data/train/HR", "datasets:train:dataroot_lq=data/train/LR",
             "datasets:train:filename_tmpl='{}x2'", "datasets:train:gt_size=16", "datasets:train:batch_size_per_gpu=2",
             "quant:calibration={patches: 2, patch_size: 8}", "logger:use_tb_logger=false"]
    assert command_line.train_main(["-opt", "my_EDSR_x4.yml", "--force_yml", "train:total_iter=2", *small]) == 0
    saved = Path("experiments") / options["name"] / "models" / "net_Q_latest.pth"
    names = torch.load(saved, weights_only=True)["params"]
    per_channel = names["body.1.conv2.weight_quantizer.lower_bound"]
    assert per_channel.numel() == 8 and float(names["body.1.conv2.weight_quantizer.n_bit"]) == 4
    tested = ["name=tested", f"path:pretrain_network_Q={saved}", "val={metrics: {psnr: {type: calculate_psnr}}}",
              "datasets:test_1={name: own, dataroot_gt: data/val/HR, dataroot_lq: data/val/LR, filename_tmpl: '{}x2'}"]
    assert command_line.test_main(["-opt", "my_EDSR_x4.yml", "--force_yml", *tested, *small]) == 0
    assert Path("results/tested/own.csv").is_file()


def test_python_example_runs() -> None:
    [code] = blocks(OWN_MODEL, "python")
    names: dict[str, object] = {}
    exec(code, names)
    restored = names["restored"]
    assert isinstance(restored, torch.Tensor) and restored.shape == (1, 3, 40, 40)


def test_errors_of_the_table_are_those_of_the_code() -> None:
    source = "".join(path.read_text() for path in (REPOSITORY / "basicsr_quant").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    table = OWN_MODEL.read_text().split("## What errors mean")[1].split("\n## ")[0]
    messages = re.findall(r"^\| `([^`]*)` \|", table, re.MULTILINE)
    assert len(messages) > 8
    for message in messages:
        fragment = max(re.split(r"…|\d|'[^']*'", message), key=len).strip(" ()':")
        assert fragment in source, f"no code says '{fragment}'"


@pytest.fixture
def extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package with the files and the lines of docs/extending.md, and some data."""
    monkeypatch.chdir(tmp_path)
    package = REPOSITORY / "basicsr_quant"
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in new_files(EXTENDING).items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    registry = tmp_path / "basicsr_quant" / "registry.py"
    text = registry.read_text()
    for table, line in new_lines(EXTENDING).items():
        head = re.search(rf"^{table} = Registry\(.*\n", text, re.MULTILINE)
        assert head is not None
        text = f"{text[:head.end()]}    {line}\n{text[head.end():]}"
    registry.write_text(text)
    layers = tmp_path / "basicsr_quant" / "quant" / "layers" / "table.py"
    [line] = re.findall(r"`(_BUILT_IN = [^`]*)`", EXTENDING.read_text())
    layers.write_text(re.sub(r"^_BUILT_IN = .*$", line, layers.read_text(), flags=re.MULTILINE))
    make_pairs(tmp_path / "data" / "train", 3, 1)
    make_pairs(tmp_path / "data" / "val", 2, 2, 24, 28)
    return tmp_path


def option_files() -> dict[str, dict[str, object]]:
    network = {"type": "ESPCN", "upscale": 2, "num_feat": 8}
    adam = {"type": "Adam", "lr": 1e-3}
    fp = common_options() | {"name": "fp", "model_type": "SRModel", "network_g": network,
                             "train": {"total_iter": 2, "optim_g": adam, "pixel_opt": {"type": "L1Loss"}}}
    low = common_options() | {
        "name": "low", "model_type": "TDQuantModel", "bit": 4, "network_Q": network,
        "pathFP": {"pretrain_network_FP": "experiments/fp/models/net_g_latest.pth"}, "train": {"total_iter": 2},
        "quant": {"calibration": {"patches": 2, "patch_size": 8}, "feature_taps": ["body.3"],
                  "weight_observer": {"type": "symmetric", "part": 0.9},
                  "plan": [{"body.2": {"weight": {"per": "channel"}, "activation": {"grid": "power_of_two"}}}]}}
    tested = {key: value for key, value in low.items() if key not in ("train", "logger", "pathFP")} | {
        "name": "test_low", "datasets": {"test_1": low["datasets"]["val"]},
        "path": {"pretrain_network_Q": "experiments/low/models/net_Q_latest.pth"}}
    return {"fp": fp, "low": low, "test_low": tested}


def test_extending(extended: Path) -> None:
    """The newcomer's walk: new files, new lines, and they work through option files."""
    assert len(new_files(EXTENDING)) == 4 and set(new_lines(EXTENDING)) == {"OBSERVERS", "QUANTIZERS", "ARCHS"}
    for name, options in option_files().items():
        (extended / f"{name}.yml").write_text(yaml.safe_dump(options))
    walk = [sys.executable, str(Path(__file__).with_name("walk.py"))]
    environment = {**os.environ, "PYTHONPATH": str(extended), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(walk, cwd=extended, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.endswith("walked\n")


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_new_files_have_the_style_of_the_project(extended: Path) -> None:
    shutil.copyfile(REPOSITORY / "pyproject.toml", extended / "pyproject.toml")
    result = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", *new_files(EXTENDING)], cwd=extended,
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_compression_table_is_what_is_counted() -> None:
    section = TDQUANT.read_text().split("## Compression and operations")[1]
    lines = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    shown = zip(*([cell.strip(" *") for cell in line.split("|")[2:-1]] for line in lines[1:]), strict=True)
    for bits, column in zip((4, 3, 2), shown, strict=True):
        options = load_options(REPOSITORY / "options/test/test_2DQuant_x4.yml", [f"bit={bits}"], is_train=False)
        with torch.device("meta"):
            counted = account(MODELS.get("TDQuantModel").skeleton(options), (1, 3, 128, 128))
        everything, (corrected, published) = HONEST, swinir_light_conventions(4)
        full, quantized = everything.operations(counted)
        published_full, published_quantized = published.operations(counted)
        assert column == (
            f"{published.parameter_ratio(counted):.3f}x", f"{everything.parameter_ratio(counted):.3f}x",
            f"{counted.float_bytes / counted.packed_bytes:.3f}x", f"{counted.packed_bytes:,}",
            f"{published_full / published_quantized:.3f}x", f"{full / quantized:.3f}x")
        assert corrected.parameter_ratio(counted) == published.parameter_ratio(counted)
        assert f"{counted.float_bytes:,}" in section
