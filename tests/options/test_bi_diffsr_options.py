"""BI-DiffSR's option files: published ones unchanged, ours by mode, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from basicsr_quant.diffusion import schedule
from basicsr_quant.diffusion.training import TimestepDraw
from basicsr_quant.errors import UserError
from basicsr_quant.options.load import datasets_of_phase, load_options
from basicsr_quant.options.methods.bi_diffsr import BetaScheduleOptions, BIDiffSROptions, BIDiffSRTrainOptions

PUBLISHED = Path(__file__).parent / "published"
OWN = Path(__file__).parents[2] / "options"


def load(path: Path, *force: str, is_train: bool = True) -> BIDiffSROptions:
    options = load_options(path, force, is_train=is_train)
    assert isinstance(options, BIDiffSROptions)
    return options


def test_published_training_file(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="basicsr_quant"):
        options = load(PUBLISHED / "bi_diffsr_train_x4.yml")
    assert (options.name, options.mode, options.scale, options.manual_seed) == ("train_BI_DiffSR_x4", "released", 4, 10)
    assert options.train is not None and options.val is not None and options.find_unused_parameters
    assert options.train.total_iter == 1_000_000 and options.train.ema_decay == 0
    assert options.train.timestep_draw == "per_batch" and options.train.unused_groups == "momentum"
    assert options.train.optim_g.arguments == {"lr": 1e-4, "weight_decay": 0.0, "betas": (0.9, 0.99)}
    assert options.val.val_freq == options.logger.save_checkpoint_freq == 20_000
    assert options.val.lpips_crop == "multiple"
    assert options.network_g.arguments["sign_zero"] == "zero" and options.network_g.arguments["dropout"] == 0.2
    assert options.network_g.arguments["group_choice"] == "first_sample"
    assert options.beta_schedule == BetaScheduleOptions()
    assert options.datasets["train"].dataset_enlarge_ratio == 100
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for key in ("datasets:train:task", "beta_schedule:guidance_scale", "beta_schedule:is_guidance"):
        assert len([line for line in warnings if f"'{key}'" in line and "never reads" in line]) == 1
    assert len(warnings) == 3


def test_published_test_file() -> None:
    options = load(PUBLISHED / "bi_diffsr_test_x4.yml", is_train=False)
    assert [data.name for _, data in datasets_of_phase(options, "test")] == ["Set5", "Manga109"]
    assert options.path.resume_state == "params" and options.train is None
    assert options.path.pretrain_network_g == "experiments/pretrained_models/BI_DiffSR_x4.pth"


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize(("mode", "expected"), [
    ("released", ("zero", "first_sample", "per_batch", "momentum", 0.0, "multiple")),
    ("paper", ("plus_one", "per_sample", "per_sample", "skip", 0.0, "border")),
    ("corrected", ("plus_one", "per_sample", "per_sample", "skip", 0.999, "border"))])
def test_modes_of_own_files(scale: int, mode: str, expected: tuple[Any, ...]) -> None:
    options = load(OWN / "train" / f"train_BI_DiffSR_x{scale}.yml", f"mode={mode}")
    assert options.train is not None and options.val is not None and options.find_unused_parameters
    network = options.network_g.arguments
    assert expected == (network["sign_zero"], network["group_choice"], options.train.timestep_draw,
                        options.train.unused_groups, options.train.ema_decay, options.val.lpips_crop)
    assert options.train.total_iter == 1_000_000 and options.beta_schedule == BetaScheduleOptions()
    assert options.datasets["train"].gt_size == 64 * scale


@pytest.mark.parametrize("setting", ["x2", "x4", "tiny_x2"])
def test_own_files_belong_together(setting: str) -> None:
    training = load(OWN / "train" / f"train_BI_DiffSR_{setting}.yml")
    testing = load(OWN / "test" / f"test_BI_DiffSR_{setting}.yml", is_train=False)
    assert training.network_g == testing.network_g and training.beta_schedule == testing.beta_schedule
    assert testing.path.pretrain_network_g == f"experiments/{training.name}/models/net_g_latest.pth"
    (_, train), (_, val) = *datasets_of_phase(training, "train"), *datasets_of_phase(training, "val")
    assert train.exclude_last == val.only_last == 20 and train.dataroot_gt == val.dataroot_gt
    assert all(data.optional for _, data in datasets_of_phase(testing, "test"))


def test_other_networks_take_no_preset_of_groups() -> None:
    arguments = load(OWN / "train" / "train_BI_DiffSR_tiny_x2.yml", "network_g={type: SR3UNet}").network_g.arguments
    assert not arguments


@pytest.mark.parametrize(("force", "message"), [
    ("beta_schedule:scheduler_type=DIM", "'beta_schedule:scheduler_type' must be one of DDIM, DDPM"),
    ("beta_schedule:schedule=cosine", "'beta_schedule:schedule' must be one of linear"),
    ("beta_schedule:num_steps=5", "num_steps"),
    ("beta_schedule:n_timestep=1000", "'beta_schedule:n_timestep' is 1000, but network_g:total_step is 2000"),
    ("network_g:total_step=100", "'beta_schedule:n_timestep' is 2000, but network_g:total_step is 100"),
    ("beta_schedule:num_inference_steps=2001", "must be an integer from 1 to n_timestep, 2000"),
    ("beta_schedule:num_inference_steps=0", "'beta_schedule:num_inference_steps' must be an integer"),
    ("beta_schedule:linear_start=0", "'beta_schedule:linear_start' must be greater than 0"),
    ("beta_schedule:linear_start=0.5", "at most linear_end, 0.01"),
    ("datasets:val:type=PairedImageDataset", "'datasets:val:type' is PairedImageDataset.*to MultiPairedImageDataset"),
    ("datasets:train:gt_size=4", "'datasets:train:gt_size' is 4; the network halves patches 3 times.*multiple of 8"),
    ("datasets:train:gt_size=36", "'datasets:train:gt_size' is 36.*must be a multiple of 8"),
    ("val:tile=64", "'val:tile' must be 0"),
    ("train:unused_groups=never", "'train:unused_groups' must be one of skip, momentum"),
    ("train:timestep_draw=often", "'train:timestep_draw' must be one of per_batch, per_sample"),
    ("network_g:group_choice=second", "group_choice"),
])
def test_what_is_refused(force: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(OWN / "train" / "train_BI_DiffSR_x4.yml", force)
    assert "\n" not in str(error.value)


def test_choices_are_those_of_the_code() -> None:
    hints = get_type_hints(BetaScheduleOptions)
    assert get_args(hints["scheduler_type"]) == get_args(schedule.SchedulerType)
    assert get_args(hints["schedule"]) == get_args(schedule.Schedule)
    assert get_args(hints["prediction_type"]) == get_args(schedule.PredictionType)
    assert get_args(get_type_hints(BIDiffSRTrainOptions)["timestep_draw"]) == get_args(TimestepDraw)
