"""kill -9 at any moment, saves included: the run that is resumed ends, to the bit, as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diffusion_workshop import diffusion_options
from kills import kill_and_resume
from small_pipeline import baseline_options, osediff_options, passionsr_options
from workshop import Workshop, dqc_options, fp_options

LENGTH = 24


def often_saved(options: dict[str, Any], **train: Any) -> dict[str, Any]:
    """Averages of losses span checkpoints, and validations fall between them."""
    options["train"] |= train
    options["logger"] |= {"print_freq": 2, "save_checkpoint_freq": 3}
    if options["val"] is not None:
        options["val"]["val_freq"] = 10
    return options


def sr(**train: Any) -> dict[str, Any]:
    """With stochastic depth and an average of the weights."""
    return often_saved(fp_options(), total_iter=LENGTH, ema_decay=0.9, **train)


def dqc(mode: str, **train: Any) -> dict[str, Any]:
    return often_saved(dqc_options() | {"mode": mode}, total_iter=LENGTH, ema_decay=0.9, **train)


def diffusion(mode: str, **train: Any) -> dict[str, Any]:
    """With dropout, an average of the weights, and timestep groups that move by their momentum."""
    options = often_saved(diffusion_options() | {"mode": mode}, total_iter=LENGTH, **train)
    options["val"]["val_freq"] = 16
    return options


def osediff(iterations: int) -> dict[str, Any]:
    options = often_saved(osediff_options(), total_iter=3 * iterations, ema_decay=0.9)
    for stage in options["train"]["stages"].values():
        stage["iterations"] = iterations
    return options


def passionsr(mode: str, only_unet: bool = False, total: int = 12) -> dict[str, Any]:
    options = often_saved(passionsr_options(mode=mode, only_unet=only_unet), total_iter=total)
    options["val"]["val_freq"] = 100
    return options


def baseline(name: str) -> dict[str, Any]:
    options = often_saved(baseline_options(name, quick=True) | {"val": None})
    options["logger"]["save_checkpoint_freq"] = 2
    return options


STAGES = {"activations": {"iterations": LENGTH // 2}, "weights": {"iterations": LENGTH // 2, "lr": 1e-3}}
QUICK: dict[str, Callable[[], dict[str, Any]]] = {
    "sr": sr,
    "dqc": lambda: dqc("corrected"),
    "diffusion": lambda: diffusion("released"),
    "osediff": lambda: osediff(2),
    "passionsr": lambda: passionsr("corrected", only_unet=True, total=4),
}
EVERY: dict[str, Callable[[], dict[str, Any]]] = {
    "sr": sr,
    "sr fp16": lambda: sr(precision="fp16", accumulation=2, gradient_clip=0.1),
    "dqc": lambda: dqc("corrected"),
    "dqc released": lambda: dqc("released"),
    "dqc in stages": lambda: dqc("corrected", stages=STAGES),
    "diffusion": lambda: diffusion("released"),
    "diffusion bf16": lambda: diffusion("corrected", precision="bf16"),
    "osediff": lambda: osediff(4),
    "passionsr": lambda: passionsr("corrected"),
    "passionsr released": lambda: passionsr("released"),
    "passionsr of the unet": lambda: passionsr("corrected", only_unet=True, total=8),
    "LSQ": lambda: baseline("LSQ"),
    "EfficientDM": lambda: baseline("EfficientDM"),
    "Q_Diffusion": lambda: baseline("Q_Diffusion"),
}


@pytest.mark.parametrize("method", QUICK)
def test_killed_once(place: Workshop, method: str) -> None:
    if method in ("osediff", "passionsr"):
        pytest.importorskip("peft")
    kill_and_resume(place, QUICK[method](), kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_killed_five_times(place: Workshop, method: str) -> None:
    pytest.importorskip("peft")
    kill_and_resume(place, EVERY[method](), kills=5)
