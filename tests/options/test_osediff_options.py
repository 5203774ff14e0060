"""Options of OSEDiff: presets, stages, checks; the shipped files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from basicsr_quant.errors import UserError
from basicsr_quant.options.load import effective_yaml, load_options
from basicsr_quant.options.methods.osediff import OSEDiffOptions, stages_of


def load(folder: Path, **content: object) -> OSEDiffOptions:
    path = folder / "file.yml"
    images = {"name": "t", "dataroot_gt": "hr", "dataroot_lq": "lr"}
    datasets = {"train": images | {"gt_size": 32}} if "train" in content else {"test_1": images}
    path.write_text(yaml.safe_dump({"name": "x", "model_type": "OSEDiffModel", "scale": 4, "datasets": datasets,
                                    "val": {}} | content))
    options = load_options(path, is_train="train" in content)
    assert isinstance(options, OSEDiffOptions)
    return options


def test_presets(tmp_path) -> None:
    released, corrected = (load(tmp_path, mode=mode, train={"total_iter": 5}) for mode in ("released", "corrected"))
    pipeline = released.pipeline
    assert (pipeline.enlarge, pipeline.fit, pipeline.posterior, pipeline.rounding, pipeline.color_fix) == (
        "pillow", "lanczos", "sample", "truncate", "adain")
    assert (pipeline.tiles.latent, pipeline.tiles.latent_overlap) == (96, 32)
    pipeline = corrected.pipeline
    assert (pipeline.fit, pipeline.posterior, pipeline.rounding) == ("pad", "mode", "once")
    assert released.train is not None and released.train.perceptual_opt is not None
    assert released.train.optim.arguments["lr"] == 5e-5 and released.train.gradient_clip == 1
    assert [(kind, stage.iterations) for kind, stage in stages_of(released.train)] == [("lora", 5)]


@pytest.mark.parametrize(("content", "message"), [
    ({"train": {"total_iter": 5, "stages": {"vae": {"iterations": 2}, "lora": {"iterations": 2}}}},
     "total_iter.*is 5, but the stages have 4"),
    ({"train": {"total_iter": 5, "stages": {}}}, "names no stage"),
    ({"pipeline": {"tiles": {"latent": 32, "latent_overlap": 32}}}, "latent_overlap.*must be below"),
    ({"pipeline": {"tiles": {"vae_encoder": 1020}}}, "multiple of 8"),
    ({"one_step": {"random_context": 3}, "path": {"text_encoder": "x"}}, "random_context"),
    ({"val": {"tile": 5}}, "val:tile"),
    ({"pipeline": {"colour_fix": "adain"}}, "color_fix"),
    ({"network_unet": {"type": "SDUNet", "block_channels": [3]}}, "block_out_channels"),
])
def test_what_is_wrong_is_named(tmp_path, content, message) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, mode="corrected", **content)


@pytest.mark.parametrize(("name", "is_train"), [
    ("train/train_OSEDiff.yml", True), ("train/train_OSEDiff_tiny.yml", True), ("test/test_OSEDiff.yml", False),
    ("test/test_OSEDiff_tiny.yml", False), ("test/test_OSEDiff_tiny_ceiling.yml", False)])
def test_shipped_files(repository, tmp_path, name, is_train) -> None:
    options = load_options(repository / "options" / name, is_train=is_train)
    assert isinstance(options, OSEDiffOptions)
    copy = tmp_path / "copy.yml"
    copy.write_text(effective_yaml(options))
    assert load_options(copy, is_train=is_train) == options
