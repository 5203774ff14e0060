"""Option files rebuilt from the published ones load unchanged; each key meets its fate."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from basicsr_quant.errors import UserError
from basicsr_quant.options.load import datasets_of_phase, load_options
from basicsr_quant.options.methods.tdquant import TDQuantOptions

FOLDER = Path(__file__).parent / "published"


def load(name: str, *force: str, is_train: bool = True) -> TDQuantOptions:
    options = load_options(FOLDER / name, force, is_train=is_train)
    assert isinstance(options, TDQuantOptions)
    return options


def test_training_file(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="basicsr_quant"):
        options = load("train_x4.yml")
    assert (options.name, options.mode, options.bit, options.gpu) == ("2DQuant_train_x4", "released", 4, 0)
    assert options.train is not None and options.val is not None
    assert options.train.total_iter == 4000 and options.train.warmup_iter == -1
    assert options.train.optim_bound.arguments == {"lr": 0.01, "weight_decay": 0.0, "betas": (0.9, 0.99)}
    assert options.train.scheduler is not None and options.train.scheduler.arguments == {"milestones": [10000]}
    assert options.train.feature_loss is not None and options.train.feature_loss.type == "MSELoss"
    assert options.val.val_freq == 100 and type(options.val.val_freq) is int
    assert options.logger.save_checkpoint_freq == 100 and options.logger.wandb is not None
    assert options.path.strict_load_Q is True
    assert options.network_Q.arguments["img_range"] == 1.0
    assert options.quant.calibration.train_mode and options.quant.one_sided_observer is None
    assert options.quant.learn.pixel_normalization == "twice"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for key in ("datasets:train:task", "quant:awe", "quant:better", "train:optim_bit"):
        assert len([line for line in warnings if f"'{key}'" in line and "never reads" in line]) == 1
    assert len(warnings) == 4
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len([line for line in lines if "selfensemble_testing" in line]) == 1
    assert len([line for line in lines if "'gpu'" in line]) == 1


def test_test_file(caplog: pytest.LogCaptureFixture) -> None:
    options = load("test_x4.yml", is_train=False)
    assert [data.name for _, data in datasets_of_phase(options, "test")] == ["Set5", "Manga109"]
    assert options.train is None
    assert any("'network_g'" in record.getMessage() for record in caplog.records)


def test_calibration_file() -> None:
    options = load("calibration_x4.yml")
    assert options.cali_data_save_path == "keydata/cali_data_x4.pth"
    assert options.datasets["train"].prefetch_factor == 16


@pytest.mark.parametrize(("setting", "seen"), [
    ("val:selfensemble_testing=true", lambda options: options.val.self_ensemble is True),
    ("val:patchwise_testing=true", lambda options: options.val.tile == 128),
    ("val:tile=64", lambda options: options.val.tile == 64),
    ("datasets:train:num_prefetch_queue=32", lambda options: options.datasets["train"].prefetch_factor == 4),
    ("datasets:train:prefetch_mode=cuda", lambda options: options.datasets["train"].pin_memory is True),
    ("quant:bicubic=true", lambda options: options.quant.bicubic and options.quant.upscale_only == "none"),
])
def test_translated_keys(setting: str, seen: object) -> None:
    assert callable(seen) and seen(load("train_x4.yml", setting))


def test_translated_key_of_wrong_type() -> None:
    with pytest.raises(UserError, match="'datasets:train:prefetch_factor' must be an integer"):
        load("train_x4.yml", "datasets:train:num_prefetch_queue=many")


def test_our_key_wins_over_the_published_one() -> None:
    assert load("train_x4.yml", "val:patchwise_testing=true", "val:tile=96").val.tile == 96  # type: ignore[union-attr]


def test_the_published_command_line() -> None:
    options = load("test_x4.yml", "bit=3", "name=test_3", "path:pretrain_network_Q=experiments/a=b/net.pth",
                   "num_gpu=0", is_train=False)
    assert (options.bit, options.name, options.num_gpu) == (3, "test_3", 0)
    assert options.path.pretrain_network_Q == "experiments/a=b/net.pth"
