"""The methods that PassionSR is compared with, from their option files: trained, interrupted, tested, packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_pipeline import BASELINES, FP, baseline_options
from workshop import Workshop, error_lines, same

from basicsr_quant.compat import load_torchvision
from basicsr_quant.deploy.pack import pack
from basicsr_quant.deploy.unpack import open_model
from basicsr_quant.io.images import read_image
from basicsr_quant.options.load import load_options
from basicsr_quant.registry import MODELS

load_torchvision()
pytest.importorskip("diffusers")

MOMENTS = {"LSQ": 2, "EfficientDM": 4, "Q_Diffusion": 7}
"""Iterations in the middle of a stage; for Q-Diffusion in the middle of a block too, for EfficientDM in the second."""


def test_of(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The test file of a run: what it quantizes is said again, but not how bounds were found."""
    name = options["name"]
    quant = {key: value for key, value in options["quant"].items() if not key.endswith("observer")}
    kept = {key: value for key, value in options.items() if key not in ("train", "logger")}
    models = folder / "experiments" / name / "models"
    files = {f"{part}_ckpt": str(models / f"net_{part}_latest.pth") for part in ("unet", "vae")}
    return kept | {"name": f"test_{name}", "quant": quant, "datasets": {"test_1": options["datasets"]["val"]},
                   "path": {**FP, **files}}


test_of.__test__ = False  # type: ignore[attr-defined]


def images(folder: Path) -> dict[str, np.ndarray]:
    """Stem without suffix -> the image that was written last."""
    paths = sorted(folder.rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    return {path.stem.partition("_")[0]: read_image(path) for path in paths}


@pytest.mark.parametrize("name", BASELINES)
def test_from_training_to_a_packed_file(place: Workshop, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Validation at the end of the training, the test of its files, and the packed file give the same images."""
    options = baseline_options(name)
    assert place.train(options) == 0
    assert not error_lines(capfd.readouterr().err)
    tested = test_of(options, place.folder)
    assert place.test(tested) == 0
    found = images(place.folder / f"results/test_{name}/visualization")
    assert len(found) == 2
    validated = images(place.experiment(name) / "visualization")
    assert validated.keys() == (found.keys() if options["train"]["order"] else set())
    for stem, image in validated.items():
        assert np.array_equal(image, found[stem]), stem
    params = [place.network(name, part)["params"] for part in ("unet", "vae")]
    kinds = {key.rpartition(".")[2] for state in params for key in state}
    assert kinds == {"lower_bound", "upper_bound"} | {
        "Q_Diffusion": {"weight"}, "EfficientDM": {"down", "up"}}.get(name, set())
    loaded = load_options(place.write(tested), is_train=False)
    model = MODELS.build(loaded.model_type, loaded, torch.device("cpu"))
    model.load_pretrained(training=False)
    image = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(2))
    with model.inference_form(model.network):
        wanted = model.restore(image)
    (place.folder / "packed.safetensors").write_bytes(pack(model)[0])
    opened, _ = open_model(place.folder / "packed.safetensors", torch.device("cpu"))
    assert torch.equal(opened.restore(image), wanted)


@pytest.mark.parametrize("name", MOMENTS)
def test_resumed_in_the_middle(place: Workshop, name: str) -> None:
    options = baseline_options(name, quick=True)
    options["val"] = None
    end = None
    for run in ("reference", "interrupted"):
        options["logger"]["save_checkpoint_freq"] = MOMENTS[name]
        assert place.train(options, f"name={run}") == 0
        end = max(int(path.stem) for path in place.experiment(run).glob("training_states/*.state"))
        assert end > MOMENTS[name]
    for path in place.experiment("interrupted").glob("training_states/*.state"):
        if int(path.stem) > MOMENTS[name]:
            path.unlink()
    assert place.train(options, "name=interrupted", flags=["--auto_resume"]) == 0
    for part in ("unet", "vae"):
        assert same(place.network("interrupted", part, end)["params"], place.network("reference", part, end)["params"])
    assert same(place.state("interrupted", end)["optimizers"], place.state("reference", end)["optimizers"])


def test_a_checkpoint_of_another_method_is_refused(place: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    options = baseline_options("MaxMin")
    assert place.train(options) == 0
    tested = test_of(options, place.folder)
    assert place.test(tested, "quant:grid=symmetric_step") != 0
    assert "was quantized by another plan" in error_lines(capfd.readouterr().err)[-1]
