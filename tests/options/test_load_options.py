"""Typed options: errors that name key and line, precedence, command line, effective YAML."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from basicsr_quant.errors import UserError
from basicsr_quant.options.load import difference, effective_yaml, parse_arguments

Loader = Callable[..., Any]

FILE = """name: n
model_type: TDQuantModel
scale: 2
bit: 4
datasets:
  train: {name: A, dataroot_lq: a, gt_size: 64}
network_Q: {type: SwinIR, upscale: 2}
val:
  metrics:
    psnr: {type: calculate_psnr, crop_border: 4}
train:
  totl_iter: 5
"""


def test_unknown_key_names_line_and_nearest(load: Loader) -> None:
    with pytest.raises(UserError) as caught:
        load(FILE)
    assert str(caught.value) == "o.yml:12: unknown key 'train:totl_iter' (did you mean 'total_iter'?)"


@pytest.mark.parametrize(("setting", "message"), [
    ("train:total_iter=many", "'train:total_iter' must be an integer of at least 1, not 'many'"),
    ("train:total_iter=0", "at least 1, not 0"),
    ("train:total_iter=2.5", "at least 1, not 2.5"),
    ("train:total_iter=true", "at least 1, not true"),
    ("train=5", "'train' must be a block of keys, not 5"),
    ("train:total_iter:x=5", "missing key|must be an integer"),
    ("bit=9", "'bit' must be an integer from 1 to 8 or null, not 9"),
    ("num_gpu=-1", "'num_gpu' must be an integer of at least 0 or auto"),
    ("num_gpu=autp", r"\(did you mean 'auto'\?\)"),
    ("train:precision=fp31", r"must be one of fp32, bf16, fp16, fp64, not 'fp31' \(did you mean 'fp32'\?\)"),
    ("train:ema_decay=1", "'train:ema_decay' must be a number of at least 0 and below 1"),
    ("datasets:training:name=x", r"unknown key 'datasets:training' \(did you mean 'train'\?\)"),
    ("datasets:val=5", "'datasets:val' must be a block of keys"),
    ("datasets:train:filename_tmpl=x2", "must be a text that holds {}"),
    ("datasets:train:type=PairedDataset", "unknown data set type 'PairedDataset' .did you mean 'PairedImageDataset'"),
    ("datasets:train:type=[1]", "'datasets:train:type' must be a text"),
    ("datasets:train:io_backend:type=tape", "must be one of disk, lmdb"),
    ("datasets:train:gt_size=65", "'datasets:train:gt_size' is 65, which is not a multiple of scale 2"),
    ("datasets:train:crop_size=65", "not a multiple of scale 2"),
    ("network_Q=SwinIR", "'network_Q' must be a block of keys"),
    ("network_Q:type=SwinIRR", "'network_Q:type': unknown network 'SwinIRR' .did you mean 'SwinIR'"),
    ("network_Q:type=~", "'network_Q:type' must be a text, not null"),
    ("network_Q:upscal=2", "unknown key 'network_Q:upscal' .did you mean 'upscale'"),
    ("train:optim_bound:type=adam", "unknown optimizer 'adam' .did you mean 'Adam'"),
    ("train:optim_bound:lr=fast", "'train:optim_bound:lr' must be a number, not 'fast'"),
    ("train:optim_bound:betas=[1]", "must be a list of 2 values"),
    ("train:optim_bound:params=[]", "unknown key 'train:optim_bound:params'"),
    ("train:scheduler={type: MultiStepLR, gama: 1}", "unknown key 'train:scheduler:gama' .did you mean 'gamma'"),
    ("val:metrics:x={crop_border: 4}", "missing key 'val:metrics:x:type' .one of calculate_"),
    ("train:scheduler={type: MultiStepRestartLR}", "missing key 'train:scheduler:milestones'"),
    ("train:scheduler={type: CosineAnnealingRestartLR, periods: [1, 2]}", "'train:scheduler' does not fit together"),
    ("val:metrics:x={type: calculate_psnrr}", "unknown metric 'calculate_psnrr'"),
    ("val:metrics:x={type: calculate_psnr, better: up}", "must be one of higher, lower"),
    ("quant:weight_observer=dobie", "unknown observer 'dobie' .did you mean 'dobi'"),
    ("quant:weight_observer=5", "'quant:weight_observer' must be a block of keys or a text"),
    ("quant:one_sided_observer={candidates: 4}", "missing key 'quant:one_sided_observer:type' .one of dbdc"),
    ("quant:weight_observer={type: dobi, search: both}", "must be one of two_sided, one_sided, free, not 'both'"),
    ("quant:weight_observer={type: dobi, target: 3}", "unknown key 'quant:weight_observer:target'"),
    ("val:metrics:x={type: calculate_psnr, crop_border: wide}", "'val:metrics:x:crop_border' must be an integer"),
    ("train:pixel_opt={type: L1Loss, loss_wieght: 1}", "unknown key 'train:pixel_opt:loss_wieght' .did you mean 'loss"),
    ("manual_seed=99999999999999999999", "is not a finite number of ordinary size"),
    ("quant:plan=all", "'quant:plan' must be a list"),
    ("quant:hook_per_block=true", "exactly one must be true"),
    ("quant:hook_per_layer=false", "exactly one must be true"),
    ("quant={bicubic: true, upscale_only: bicubic}", "contradicts quant:bicubic"),
    ("name=a/b", "'name' names a folder"),
    ("name=..", "'name' names a folder"),
    ("name=2", "'name' must be a text that is not empty, not 2"),
    ("name=", "missing key 'name'"),
    ("bit=~", "'bit' is missing"),
    ("mode=relesed", r"'mode' must be one of released, paper, corrected \(did you mean 'released'\?\)"),
    ("mode=[]", "'mode' must be one of"),
    ("model_type=TDQuant", r"'model_type' must be a known method, not 'TDQuant' \(did you mean 'TDQuantModel'\?\)"),
    ("model_type=~", "'model_type' is missing"),
    ("datasets={}", "'datasets' is empty"),
    ("datasets={val: {name: A, dataroot_lq: b}}", "'datasets:train' is missing"),
    ("datasets={train: {name: A}}", "neither dataroot_gt nor dataroot_lq"),
    ("datasets:train={name: A, dataroot_lq: b, only_last: 3, exclude_last: 2}", "contradicts exclude_last"),
    ("val={tile: 32, tile_overlap: 32}", "'val:tile_overlap' must be smaller than val:tile"),
    ("train", "not a setting; write KEY=VALUE"),
    ("=5", "not a setting"),
    ("train::lr=5", "not a setting"),
    ("bit=[1", "--force_yml bit=.1: expected"),
    ("name=*a", "quote it"),
    ("name:x=1", "'name' is not a block of keys, so 'name:x' cannot be set"),
    ("unknwn=1", "--force_yml unknwn=1: unknown key 'unknwn'"),
])
def test_one_line_for_each_mistake(load: Loader, small_options: dict[str, Any], setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(small_options, setting)
    assert "\n" not in str(caught.value)


def test_components_without_type_and_missing_blocks(load: Loader, small_options: dict[str, Any]) -> None:
    del small_options["network_Q"]
    with pytest.raises(UserError, match=r"o.yml: missing key 'network_Q' \(The network\)"):
        load(small_options)


def test_command_line_over_file_over_preset_over_default(load: Loader, small_options: dict[str, Any]) -> None:
    options = load(small_options, "mode=paper", "train:accumulation=2", "datasets:val:name=B",
                   "datasets:val:dataroot_lq=b",
                   "val:metrics:psnr={type: calculate_psnr, crop_border: 2}", "logger:wandb:project=\"x=y\"")
    assert options.train.optim_bound.arguments == {"lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    assert options.train.total_iter == 3000 and options.train.scheduler.arguments["T_max"] == 3000
    assert options.train.accumulation == 2 and options.train.warmup_iter == -1
    assert options.datasets["train"].batch_size_per_gpu == 32 and options.datasets["val"].batch_size_per_gpu == 1
    assert options.logger.wandb.project == "x=y"
    assert load(small_options, "train:optim_bound:lr=1e-3").train.optim_bound.arguments["lr"] == 0.001


def test_a_preset_keeps_away_from_another_type(load: Loader, small_options: dict[str, Any]) -> None:
    small_options["train"]["optim_bound"] = {"type": "SGD", "lr": 1}
    options = load(small_options, "mode=paper", "quant:activation_observer={type: percentile, percentile: 99.9}",
                   "quant:one_sided_observer=~")
    assert options.train.optim_bound.arguments == {"lr": 1.0}
    assert options.quant.activation_observer["type"] == "percentile"
    assert "candidates" not in options.quant.activation_observer
    assert options.quant.one_sided_observer is None


def test_a_preset_creates_no_block(load: Loader, small_options: dict[str, Any]) -> None:
    del small_options["train"], small_options["val"]
    small_options["datasets"] = {"test_1": {"name": "A", "dataroot_lq": "a"}}
    options = load(small_options, is_train=False)
    assert options.train is None and options.val is None and list(options.datasets) == ["test_1"]
    del small_options["datasets"]
    with pytest.raises(UserError, match="'datasets' is empty; at least one data set is needed"):
        load(small_options, is_train=False)


@pytest.mark.parametrize(("mode", "learn", "one_sided"), [
    ("released", ("twice", "batch_broadcast", False, 0.0), None),
    ("paper", ("once", "unit_norm", False, 0.0), ("one_sided", "half_range", "last")),
    ("corrected", ("once", "relative", True, 0.05), ("one_sided", "full_range", "first")),
])
def test_presets(load: Loader, small_options: dict[str, Any], mode: str, learn: Any, one_sided: Any) -> None:
    quant = load(small_options, f"mode={mode}").quant
    assert msgspec.structs.astuple(quant.learn) == learn
    assert quant.calibration.train_mode is (mode == "released")
    spec = quant.one_sided_observer
    assert (spec and (spec["search"], spec["step"], spec["ties"])) == one_sided
    assert quant.activation_observer["search"] == "two_sided"


def test_debug(load: Loader, small_options: dict[str, Any]) -> None:
    options = load(small_options, debug=True)
    assert (options.name, options.val.val_freq, options.logger.print_freq) == ("debug_small", 8, 1)
    assert load(small_options, "name=debug_small", debug=True).name == "debug_small"
    del small_options["val"]
    assert load(small_options, "logger=~", debug=True).val is None


def test_integral_floats_and_ints_for_floats(load: Loader, small_options: dict[str, Any]) -> None:
    options = load(small_options, "val:val_freq=!!float 2e4", "train:scheduler={type: MultiStepLR, milestones: [1e3]}",
                   "train:gradient_clip=1")
    assert options.val.val_freq == 20000 and type(options.val.val_freq) is int
    assert options.train.scheduler.arguments == {"milestones": [1000]}
    assert type(options.train.gradient_clip) is float


def test_other_networks_are_left_to_their_builder(load: Loader, small_options: dict[str, Any]) -> None:
    options = load(small_options, "network_Q={type: 'basicsr:EDSR', num_feat: 8}")
    assert options.network_Q.arguments == {"num_feat": 8}


def test_options_are_frozen(load: Loader, small_options: dict[str, Any]) -> None:
    with pytest.raises(AttributeError):
        load(small_options).name = "x"


@pytest.mark.parametrize("mode", ["released", "paper", "corrected"])
def test_effective_yaml_is_read_back(load: Loader, small_options: dict[str, Any], mode: str) -> None:
    options = load(small_options, f"mode={mode}", "name='1e-3'", "val:suffix=yes", "gpu=0",
                   "val:metrics:a={type: calculate_lpips, better: lower}",
                   "quant:plan=[{'*.qkv': {weight: {bits: 4}}}, {'*.pos.*': none}]")
    text = effective_yaml(options)
    again = load(text)
    assert again == options
    assert effective_yaml(again) == text
    assert again.val.metrics["a"].better == "lower"


def test_difference(load: Loader, small_options: dict[str, Any]) -> None:
    before = effective_yaml(load(small_options))
    after = effective_yaml(load(small_options, "bit=3", "val:metrics:psnr={type: calculate_psnr}"))
    lines = difference(before, after)
    assert "bit: 4 -> 3" in lines
    assert "val:metrics:psnr:type: (absent) -> 'calculate_psnr'" in lines
    assert difference(before, before) == []


def test_test_files_need_no_training(load: Loader, small_options: dict[str, Any]) -> None:
    small_options["datasets"] = {"test": {"name": "A", "dataroot_lq": "a"}}
    del small_options["bit"]
    assert load(small_options, is_train=False).bit is None


def test_command_line() -> None:
    arguments = parse_arguments(["-opt", "f.yml", "--launcher", "pytorch", "--auto_resume", "--debug",
                                 "--local-rank", "1", "--force_yml", "a=1", "b:c=x", "--force_yml", "d=2"],
                                is_train=True)
    assert (arguments.opt, arguments.launcher, arguments.local_rank) == ("f.yml", "pytorch", 1)
    assert arguments.auto_resume and arguments.debug and arguments.force_yml == ["a=1", "b:c=x", "d=2"]
    assert parse_arguments(["-opt", "f.yml", "--local_rank", "2"], is_train=False).local_rank == 2
    with pytest.raises(SystemExit):
        parse_arguments([], is_train=True)


def test_nothing_is_logged_without_published_keys(load: Loader, small_options: dict[str, Any],
                                                  caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="basicsr_quant"):
        load(small_options)
    assert not caplog.records
