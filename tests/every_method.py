"""One small training of every method, as option files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diffusion_workshop import diffusion_options
from small_pipeline import FP, osediff_options, passionsr_options
from workshop import Workshop, dqc_options, fp_options

from basicsr_quant.compat import load_torchvision

Options = dict[str, Any]


def _diffusion() -> Options:
    return diffusion_options() | {"find_unused_parameters": True}


METHODS: dict[str, Callable[[], Options]] = {
    "fp": fp_options, "dqc": dqc_options, "diffusion": _diffusion, "osediff": lambda: osediff_options("osediff"),
    "passionsr": lambda: passionsr_options("passionsr"),
}
"""Name of the run -> its options; every network that is trained has some randomness."""


def workshop_for(method: str, request: pytest.FixtureRequest) -> Workshop:
    """Return a workshop with what the method needs; the test is skipped without the libraries for it."""
    if method not in ("osediff", "passionsr"):
        return request.getfixturevalue("workshop")
    load_torchvision()
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    return request.getfixturevalue("place")


def sample_by_sample(method: str) -> Options:
    """The method in float64, without dropout and without losses that couple the samples of a batch."""
    options = METHODS[method]()
    options["train"] |= {"precision": "fp64"}
    options["datasets"]["train"]["batch_size_per_gpu"] = 4
    options["logger"] |= {"save_checkpoint_freq": 1}
    if method in ("fp", "dqc"):
        options["network_g" if method == "fp" else "network_Q"]["drop_path_rate"] = 0
    if method in ("fp", "dqc", "diffusion"):
        options["train"] |= {"total_iter": 3, "ema_decay": 0.9}
    if method == "diffusion":
        options["network_g"]["dropout"] = 0
    if method == "passionsr":  # bounds renewed from each batch depend on how it is divided
        options["train"]["stages"] = {f"{part}_let": {"bounds": "recalibrated"}
                                      for part in ("encoder", "unet", "decoder")}
    return options


def test_file(options: Options) -> Options:
    """The test file that belongs to a training file, for the weights that it left."""
    models = f"experiments/{options['name']}/models"
    latest = {part: f"{models}/net_{part}_latest.pth" for part in ("g", "Q", "unet", "vae")}
    paths: dict[str, dict[str, str]] = {
        "SRModel": {"pretrain_network_g": latest["g"]}, "BIDiffSRModel": {"pretrain_network_g": latest["g"]},
        "TDQuantModel": {"pretrain_network_Q": latest["Q"]},
        "OSEDiffModel": {f"pretrain_network_{part}": latest[part] for part in ("unet", "vae")},
        "PassionSRModel": FP | {f"{part}_ckpt": latest[part] for part in ("unet", "vae")},
    }
    kept = {key: value for key, value in options.items() if key not in ("train", "logger", "pathFP", "lora")}
    return kept | {"name": f"test_{options['name']}", "datasets": {"test_1": options["datasets"]["val"]},
                   "path": paths[options["model_type"]], "val": dict(options["val"])}


test_file.__test__ = False  # type: ignore[attr-defined]
