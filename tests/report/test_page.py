"""The page's content: what it gathers from results folders, and what it says where something is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_runs import IMAGES, RUNS, options_of_test
from workshop import Workshop

from basicsr_quant.cli.main import main
from basicsr_quant.data.bicubic import imresize
from basicsr_quant.io.images import read_image, write_image
from basicsr_quant.models.tdquant import TDQuantModel
from basicsr_quant.options.load import load_options
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.report.page.build import SCRIPTS, gather, page
from basicsr_quant.report.page.images import FOLDER
from basicsr_quant.report.page.runs import read_runs
from basicsr_quant.report.page.sizes import size_of
from basicsr_quant.report.page.trainings import POINTS, Curves, curves_of
from basicsr_quant.report.training import read_training

Copied = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def tested(tested_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A workshop with results, which is the working directory."""
    monkeypatch.chdir(tested_folder)
    return Workshop(tested_folder)


@pytest.fixture
def copied(tested: Workshop, tmp_path: Path) -> Copied:
    """Copies the results of some runs."""
    def copy(*names: str) -> Path:
        for name in names:
            shutil.copytree(tested.folder / "results" / name, tmp_path / "copied" / name)
        return tmp_path / "copied"

    return copy


def gathered(folder: Path, output: Path, limit: int = 10) -> dict[str, Any]:
    content = gather(read_runs([folder]), output, limit, Curves())
    json.dumps(content, allow_nan=False)
    return content


def panels(content: dict[str, Any], image: int = 0) -> dict[str, dict[str, Any]]:
    return {panel["label"]: panel for panel in content["datasets"][0]["images"][image]["panels"]}


def test_whole_content(tested: Workshop, tmp_path: Path) -> None:
    content = gathered(tested.folder / "results", tmp_path)
    assert [(run["name"], run["kind"]) for run in content["runs"]] == [
        ("bicubic", "interpolation"), ("FP", "full precision"), ("bits3", "W3 A3"), ("bits8", "W8 A8")]
    sizes = {run["name"]: run["bytes"] for run in content["runs"]}
    assert sizes["bicubic"] == 0 < sizes["bits3"] < sizes["bits8"] < sizes["FP"]
    for run in content["runs"]:
        found = json.loads((tested.folder / "results" / run["name"] / "metrics.json").read_text())["val"]
        assert run["metrics"]["val"] == found["mean"]
        assert run["seconds"] == found["seconds"] / 3
    assert content["metrics"]["psnr"] == {"better": "higher", "decimals": 2}
    assert content["start"]["left"] == "LR"
    assert "psnr: calculate_psnr (crop_border 2)" in content["conventions"][0]
    [note] = content["notes"]
    assert note.startswith("'bits8': no bounds") and "results/bits8/test_bits8.yml" in note

    [dataset] = content["datasets"]
    assert [image["name"] for image in dataset["images"]] == list(IMAGES)
    for number, image in enumerate(dataset["images"]):
        shown = panels(content, number)
        assert list(shown) == ["LR", *RUNS, "HR"]
        files = {label: read_image(tmp_path / panel["file"]) for label, panel in shown.items()}
        high = read_image(tested.folder / f"data/val/HR/{image['name']}.png")
        assert np.array_equal(files["HR"], high)
        assert np.array_equal(files["LR"], read_image(tested.folder / f"data/val/LR/{image['name']}x2.png"))
        assert (image["height"], image["width"]) == high.shape[:2]
        assert np.abs(files["bicubic"].astype(int) - imresize(files["LR"], 2)).max() <= 1
        for name in RUNS:
            saved = tested.folder / "results" / name / f"visualization/val/{image['name']}_{name}.png"
            assert (tmp_path / shown[name]["file"]).read_bytes() == saved.read_bytes()


def test_bicubic_is_made_where_no_run_has_it(copied: Copied, tmp_path: Path) -> None:
    content = gathered(copied("bits3"), tmp_path / "page")
    shown = panels(content)
    assert list(shown) == ["LR", "bicubic", "bits3", "HR"]
    low, made = (read_image(tmp_path / "page" / shown[label]["file"]) for label in ("LR", "bicubic"))
    assert np.array_equal(made, imresize(low, 2))


def test_without_references(copied: Copied, tested: Workshop, tmp_path: Path) -> None:
    shutil.copytree(tested.folder / "data" / "val" / "LR", tmp_path / "alone")
    folder = copied("bits3") / "bits3"
    options = folder / "test_bits3.yml"
    options.write_text(options.read_text().replace("data/val/HR", "nowhere").replace("data/val/LR", str(
        tmp_path / "alone")))
    (folder / "metrics.json").write_text(json.dumps({"val": {"mean": {}, "images": 3, "seconds": 6.0}}))
    (folder / "val.csv").unlink()
    content = gathered(folder, tmp_path / "page")
    assert [image["name"] for image in content["datasets"][0]["images"]] == list(IMAGES)
    shown = panels(content)
    assert shown["HR"]["missing"] == "no reference" and shown["LR"]["file"] and shown["bits3"]["file"]
    assert content["runs"][0]["metrics"] == {"val": {}} and content["runs"][0]["seconds"] == 2


def test_everything_that_can_be_missing(copied: Copied, tmp_path: Path) -> None:
    folder = copied("FP", "bits3", "bits8")
    for path in folder.glob("*/test_*.yml"):
        path.unlink()
    shutil.rmtree(folder / "bits3" / "visualization")
    (folder / "FP/visualization/val/im0_FP.png").write_bytes(b"no image")
    write_image(folder / "bits8/visualization/val/im1_bits8.png", np.zeros((4, 4, 3), np.uint8))
    content = gathered(folder, tmp_path / "page")
    assert [run["bytes"] for run in content["runs"]] == [None] * 3
    assert sum("size not counted" in note for note in content["notes"]) == 3
    assert any("no LR and HR images" in note for note in content["notes"])
    first, second = panels(content), panels(content, 1)
    assert first["LR"]["missing"] == "LR image not found"
    assert first["bits3"]["missing"] == "image not saved" and first["FP"]["missing"] == "damaged"
    assert second["FP"]["file"] and second["bits8"]["missing"] == "4x4 pixels, not 24x28"


def test_widths_are_those_of_the_checkpoint(tested: Workshop, tmp_path: Path) -> None:
    """Where the options leave them to it."""
    tested.write(options_of_test(), "own")
    known = load_options("own.yml", ["bit=5"], is_train=False)
    model = TDQuantModel(known, torch.device("cpu"))
    network = TDQuantModel.skeleton(known)
    for _, quantizer in named_quantizers(network):
        quantizer.set_bounds(torch.tensor(-1.0), torch.tensor(1.0))
    torch.save({"params": model.export_state("Q", network)}, tmp_path / "five.pth")
    unknown = load_options("own.yml", ["bit=null", f"path:pretrain_network_Q={tmp_path / 'five.pth'}"], is_train=False)
    assert size_of(unknown) == size_of(known)
    assert size_of(known).kind == "W5 A5"


def test_few_images(tested: Workshop, tmp_path: Path) -> None:
    content = gathered(tested.folder / "results/FP", tmp_path, 2)
    assert [image["name"] for image in content["datasets"][0]["images"]] == list(IMAGES[:2])
    assert any("2 of 3 images" in note for note in content["notes"])


def test_text_of_the_page_is_safe(tested: Workshop, tmp_path: Path) -> None:
    """Names from files cannot end the data or the title, and the page names nothing outside of itself."""
    content = gathered(tested.folder / "results/FP", tmp_path)
    content["notes"] = ["</script><b>"]
    text = page(content, "<i>{{data}} & more")
    assert "&lt;i&gt;{{data}} &amp; more" in text and "<i>" not in text
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["notes"] == ["</script><b>"]
    assert text.count("</script>") == 2 and "{{" not in text.replace("{{data}} &amp;", "")
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "") and "https:" not in text
    assert all(f"// {first}" in text for first in ("Two images", "Starts everything")) and len(SCRIPTS) == 9


def test_curves_of_trainings(tested: Workshop, copied: Copied, tmp_path: Path) -> None:
    """The training that made a run's weights is found; log and TensorBoard say the same to the log's digits."""
    folder = copied("bits3") / "bits3"
    options = folder / "test_bits3.yml"
    options.write_text(options.read_text().replace("weights/fp.pth", "experiments/dqc/models/net_Q_latest.pth"))
    runs = read_runs([folder])
    assert [training["name"] for training in curves_of(runs, []).trainings] == ["dqc"]
    assert curves_of(read_runs([tested.folder / "results/FP"]), []).trainings == []
    folders = [Path("tb_logger/dqc"), Path("experiments/dqc")]
    recorded, logged = (read_training(folder) for folder in folders)
    assert list(logged.losses["pixel"]) == [1, 2, 3, 4] and list(logged.metrics["val psnr"]) == [3, 4]
    assert set(logged.metrics) == {"val psnr", "val ssim"} and logged.losses.keys() == recorded.losses.keys()
    for kind in ("losses", "metrics"):
        for name, curve in getattr(logged, kind).items():
            assert curve == pytest.approx(getattr(recorded, kind)[name], rel=1e-4, abs=1e-4)
    curves = curves_of(runs, folders)
    assert [training["name"] for training in curves.trainings] == ["tb_logger/dqc", "experiments/dqc"]
    content = gather(runs, tmp_path / "page", 1, curves)
    assert content["trainings"][1]["metrics"]["val psnr"] == list(logged.metrics["val psnr"].items())
    json.dumps(content, allow_nan=False)


def test_curves_of_long_interrupted_trainings(tmp_path: Path) -> None:
    """Rotated logs go first, what was run twice counts once, numbers that are none are left out, ends stay."""
    folder = tmp_path / "long"
    folder.mkdir()
    lines = [f"2026-01-01 00:00:00 INFO: [long] iteration {step}/3000, lr 1.0e-3, pixel {step}.0e-01, feature nan, "
             "0.10 s/it, ETA 0:00:01" for step in range(1, 3001)]
    twice = lines[900].replace("901.0e-01", "5.0e-01")
    (folder / "train_long.log.2").write_text("\n".join([*lines[:900], twice]))
    (folder / "train_long.log.1").write_text("\n".join(lines[900:2000]))
    last = "2026-01-01 00:00:00 INFO: validation my set, iteration 3000: psnr 20.5000, lpips 0.1000\n2026-01-01 00:0"
    (folder / "train_long.log").write_text("\n".join([*lines[2000:], last]))
    training = read_training(folder)
    assert training.losses == {"pixel": {step: pytest.approx(step / 10) for step in range(1, 3001)}}
    assert training.metrics == {"my set psnr": {3000: 20.5}, "my set lpips": {3000: 0.1}}
    [shown] = curves_of([], [folder]).trainings
    points = shown["losses"]["pixel"]
    assert len(points) == POINTS and (points[0][0], points[-1][0]) == (1, 3000)
    assert shown["metrics"]["my set psnr"] == [(3000, 20.5)]


def test_page_replaces_an_earlier_one_only(tested: Workshop, tmp_path: Path, capsys: Capture) -> None:
    command = ["report", "results/FP", "-o", str(tmp_path / "page")]
    assert main(command) == 0
    assert f"1 runs: open {tmp_path / 'page/index.html'}" in capsys.readouterr().out
    (tmp_path / "page" / FOLDER / "old.png").touch()
    assert main(command) == 0
    assert not (tmp_path / "page" / FOLDER / "old.png").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert main(["report", "results/FP", "-o", str(tmp_path / "other")]) == 2
    assert "is no page of an earlier report" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("folders", "message"), [
    (["nowhere"], "is no folder"), (["data/val"], "holds no metrics.json"),
    (["results/FP", "results/FP"], "named twice"), (["broken"], "is damaged"),
    (["strange"], "not what test.py writes"), (["hollow"], "is empty"),
    (["results/FP", "triple"], "different factors"),
    (["results/FP", "--trainings", "data/val"], "holds neither train_*.log nor TensorBoard files"),
    (["results/FP", "--trainings", "silent"], "holds no loss and no validation")])
def test_one_line_for_what_is_wrong(tested: Workshop, capsys: Capture, tmp_path: Path,
                                    folders: list[str], message: str) -> None:
    for name, text in (("broken", "{"), ("strange", '{"val": {"mean": 3}}'), ("hollow", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(text)
    (tmp_path / "silent").mkdir()
    (tmp_path / "silent" / "train_silent.log").touch()
    shutil.copytree("results/FP", tmp_path / "triple")
    options = tmp_path / "triple/test_FP.yml"
    options.write_text(options.read_text().replace("scale: 2", "scale: 3"))
    named = [folder if "/" in folder or folder[0] == "-" else str(tmp_path / folder) for folder in folders]
    assert main(["report", *named, "-o", str(tmp_path / "page")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0], errors
    assert not (tmp_path / "page").exists()


def test_number_of_images(tested: Workshop, capsys: Capture) -> None:
    assert main(["report", "results/FP", "-o", "page", "--images", "0"]) == 2
    assert "--images must be at least 1" in capsys.readouterr().err


def test_analysis_file_and_tensorboard(tested: Workshop) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    content = json.loads((tested.folder / "results/bits3/analysis.json").read_text())
    assert content["data"] == "first 2 of 3 images of 'val', central 8x8 LR pixels"
    layers = content["layers"]
    assert [layer["name"].split("attn.")[1] for layer in layers[:3]] == [f"qkv.parts.{part}" for part in range(3)]
    events = EventAccumulator("tb_logger/bits3_analysis", size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    assert len(list(Path("tb_logger/bits3_analysis").iterdir())) == 1
    curve = {event.step: event.value for event in events.Scalars("sqnr/teacher_forced")}
    assert curve == pytest.approx({number: layer["teacher_forced"] for number, layer in enumerate(layers)}, rel=1e-6)
    tensor = layers[0]["tensors"][0]
    [histogram] = events.Histograms(f"weight/{layers[0]['name']}.{tensor['name']}")
    assert histogram.histogram_value.num == sum(tensor["counts"]) == 12 * 12
    assert histogram.histogram_value.min == tensor["minimum"]


def test_analysis_needs_quantizers(tested: Workshop, capsys: Capture) -> None:
    tested.write(options_of_test(), "none")
    assert main(["analyse", "-opt", "none.yml", "--force_yml", "quant:fp_test=true"]) == 2
    assert "no tensor of this network has a quantizer" in capsys.readouterr().err.splitlines()[-1]
    assert main(["analyse", "-opt", "none.yml", "--images", "0"]) == 2
    assert "--images must be at least 1" in capsys.readouterr().err
