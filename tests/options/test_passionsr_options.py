"""Options of PassionSR: stages and their lengths, published files, what is wrong is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from basicsr_quant.errors import UserError
from basicsr_quant.options.load import effective_yaml, load_options
from basicsr_quant.options.methods.osediff import OSEDiffOptions
from basicsr_quant.options.methods.passionsr import ORDERS, PassionSROptions, lengths_of, stages_of

PUBLISHED = Path(__file__).parent / "published"
SETTINGS = [f"{flow}_W{bits}A{bits}" for flow in ("U", "UV") for bits in (8, 6)]


def load(folder: Path, *force: str, **content: Any) -> PassionSROptions:
    path = folder / "file.yml"
    images = {"name": "t", "dataroot_gt": "hr", "dataroot_lq": "lr", "gt_size": 64}
    path.write_text(yaml.safe_dump({"name": "x", "model_type": "PassionSRModel", "mode": "corrected", "scale": 4,
                                    "datasets": {"train": images}, "train": {}, "val": {}} | content))
    options = load_options(path, force)
    assert isinstance(options, PassionSROptions)
    return options


def test_stages_and_their_lengths(tmp_path: Path) -> None:
    options = load(tmp_path)
    assert [name for name, _ in stages_of(options)] == list(ORDERS[False])
    assert lengths_of(options, 5) == [10] * 6
    assert lengths_of(load(tmp_path, "train:total_iter=18"), 5) == [3] * 6
    some = load(tmp_path, "train:total_iter=18", "train:stages:unet_let:iterations=8", "quant:only_unet=false")
    assert lengths_of(some, 5) == [2, 2, 8, 2, 2, 2]
    own = load(tmp_path, "train:order=[unet_bounds]", "train:stages:unet_bounds:iterations=7")
    assert lengths_of(own, 5) == [7] and stages_of(own)[0][1].loss == "clean_latent"


def test_parts_of_the_method_can_be_left_out(tmp_path: Path) -> None:
    bounds = [name for name in ORDERS[False] if name.endswith("_bounds")]
    no_let = ["quant:let:enabled=false", "quant:smooth={query_key: false, map_value: false}", "train:total_iter=18"]
    assert lengths_of(load(tmp_path, *no_let), 5) == [3] * 6  # all stages learn bounds
    without = load(tmp_path, "mode=paper", *no_let)
    assert [name for name, _ in stages_of(without)] == bounds and lengths_of(without, 5) == [6] * 3
    half = load(tmp_path, "quant:let:enabled=false")
    assert [name for name, _ in stages_of(half)] == list(ORDERS[False])
    joint = load(tmp_path, "train:order=[joint]", "train:total_iter=18")
    assert lengths_of(joint, 5) == [18] and stages_of(joint)[0][1].component == "all"
    assert stages_of(load(tmp_path, "train:order=[]")) == []
    with pytest.raises(UserError, match="equal shares do not make up"):
        load(tmp_path, "train:order=[]", "train:total_iter=18")
    with pytest.raises(UserError, match="must be 0 with the stage 'joint'"):
        load(tmp_path, "train:order=[joint]", "train:ema_decay=0.9")


def test_stages_block_by_block_are_as_long_as_there_are_blocks(tmp_path: Path) -> None:
    stage = "train:stages:first={component: unet, learn: rounding, per_block: 5}"
    options = load(tmp_path, stage, "train:order=[first, unet_bounds]", "train:total_iter=7")
    assert lengths_of(options, 5, {"first": 11}) == [55, 7]


@pytest.mark.parametrize("mode", ["released", "paper"])
def test_modes(tmp_path: Path, mode: str) -> None:
    options = load(tmp_path, f"mode={mode}")
    stages = dict(stages_of(options))
    released = mode == "released"
    assert stages["unet_let"].loss == ("noise" if released else "clean_latent")
    assert stages["decoder_let"].target == ("hr" if released else "teacher")
    assert options.quant.let.offset_sign == ("plus" if released else "minus")
    assert options.quant.learn.gradient_memory == ("epoch" if released else "step")
    assert options.quant.unet.split == "half" and options.quant.smooth.map_value


@pytest.mark.parametrize(("force", "message"), [
    ("train:order=[unet_lett]", "names the stage 'unet_lett'"),
    ("train:order=[joint, joint]", "must name no stage twice"),
    ("train:stages:unet_let:learn=rounding", "rounding needs per_block"),
    ("train:stages:unet_let:per_block=5", "of a stage with per_block must be one of rounding, activation_bounds"),
    ("train:stages:unet_let:blocks=[unet.*]", "blocks.*needs per_block"),
    ("train:stages:unet_let:rank=4", "must be given for learn low_rank_changes, and for nothing else"),
    ("train:stages:unet_let:learn=low_rank_changes", "rank.*must be given for learn low_rank_changes"),
    ("train:stages:unet_let={component: unet, learn: bounds, loss: null}", "of the unet must be one of noise"),
    ("quant:grid=int_zeropoint", "did you mean 'int_zero_point'"),
    ("train:total_iter=7", "equal shares do not make up"),
    ("train:stages:unet_let:loss=latent", "of the unet must be one of noise, clean_latent, image"),
    ("train:stages:encoder_let:target=hr", "hr needs loss image"),
    ("train:stages:unet_let:learn=bound", "did you mean 'bounds'"),
    ("datasets:train:type=PairedImageDataset", "must be CentralPatchDataset"),
    ("quant:smooth={query_key: false, map_value: true}", "needs quant:smooth:query_key"),
])
def test_what_is_wrong_is_named(tmp_path: Path, force: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, force)


@pytest.mark.parametrize("setting", [*SETTINGS, "tiny"])
def test_shipped_files(repository: Path, setting: str) -> None:
    train, test = (load_options(repository / "options" / kind / f"{kind}_PassionSR_{setting}.yml",
                                is_train=kind == "train") for kind in ("train", "test"))
    assert isinstance(train, PassionSROptions) and isinstance(test, PassionSROptions)
    assert train.quant.only_unet == test.quant.only_unet == setting.startswith("U_")
    assert lengths_of(train, 480) == [40 if setting == "tiny" else 1000] * len(stages_of(train))
    assert (train.quant.weight_bits, train.quant.unet) == (test.quant.weight_bits, test.quant.unet)
    if setting == "tiny":
        base = load_options(repository / "options/train/train_OSEDiff_tiny.yml")
        assert isinstance(base, OSEDiffOptions)
        for options in (train, test):
            assert (options.network_unet, options.one_step) == (base.network_unet, base.one_step)
            assert options.network_vae == base.network_vae and options.pipeline.tiles.latent


@pytest.mark.parametrize("method", ["MaxMin", "LSQ", "Q_Diffusion", "EfficientDM"])
def test_baselines(repository: Path, method: str) -> None:
    """They differ from the method in what is quantized and learned, in nothing else."""
    folder = repository / "options/train"
    options, own = (load_options(file) for file in (
        folder / f"PassionSR_baselines/train_{method}_tiny.yml", folder / "train_PassionSR_tiny.yml"))
    assert isinstance(options, PassionSROptions) and isinstance(own, PassionSROptions)
    for block in ("network_unet", "network_vae", "one_step", "pipeline", "path"):
        assert getattr(options, block) == getattr(own, block), block
    assert options.datasets["val"] == own.datasets["val"]
    assert options.quant.calibration == own.quant.calibration and not options.quant.let.enabled


def test_published_files_of_both_networks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="basicsr_quant"):
        options = load_options(PUBLISHED / "passionsr_uv_w8a8.yml")
    assert isinstance(options, PassionSROptions) and options.train is not None
    assert (options.name, options.mode, options.manual_seed, options.num_gpu) == (
        "passionsr_uv_w8a8", "released", 42, 1)
    assert options.path.osediff == "weights/osediff.ckpt" and options.path.sd == "weights/stable-diffusion-2-1-base"
    train = options.datasets["train"]
    assert (train.dataroot_lq, train.dataroot_gt, train.gt_size) == ("calibration/lr", "calibration/hr", 512)
    assert options.quant.unet.split == "half" and options.quant.vae.split == "none" and not options.quant.only_unet
    stages = dict(stages_of(options))
    assert stages["unet_let"].decay == 0.2 and stages["encoder_let"].decay == 1
    assert lengths_of(options, 500) == [1000] * 6
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for key in ("basic_config:precision", "basic_config:config", "quantize_config:Vae:only_weight"):
        assert len([line for line in warned if f"'{key}'" in line]) == 1
    copy = tmp_path / "copy.yml"
    copy.write_text(effective_yaml(options))
    assert load_options(copy) == options


def test_published_files_of_the_unet() -> None:
    options = load_options(PUBLISHED / "passionsr_u_w6a6.yml", ["num_gpu=0", "name=mine"])
    assert isinstance(options, PassionSROptions)
    assert (options.name, options.num_gpu, options.quant.unet.weight_bits) == ("mine", 0, 6)
    assert [name for name, _ in stages_of(options)] == list(ORDERS[True])
    tested = load_options(PUBLISHED / "passionsr_u_w6a6_test.yml", is_train=False)
    assert isinstance(tested, PassionSROptions) and tested.train is None and tested.gpu == 1
    assert tested.path.unet_ckpt == "weights/unet_ckpt_merge_saw_sep.pth"
    assert tested.datasets["test_1"].name == "RealSR"


@pytest.mark.parametrize(("force", "message"), [
    ("quantize_config:Unet:weight_sym=true", "only false is offered"),
    ("quantize_config:Unet:layer_type=normal_quant", "only '2Dquant' is offered"),
    ("quantize_config:Unet:bits=3", "unknown key 'quantize_config:Unet:bits'"),
    ("basic_config:upscaling=3", "unknown key 'basic_config:upscaling'.*upscale"),
    ("device=tpu", "'device' must be"),
])
def test_published_keys_that_are_refused(force: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_options(PUBLISHED / "passionsr_uv_w8a8.yml", [force])
