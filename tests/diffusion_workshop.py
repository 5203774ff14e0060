"""Tiny diffusion runs for the workshop."""

from __future__ import annotations

from typing import Any

from workshop import common_options

UNETS: dict[str, dict[str, Any]] = {
    "bi_diffsr": {"type": "BIDiffSRUNet", "dynamic_group": 3, "fp_res": [16]},
    "sr3": {"type": "SR3UNet"},
    "bnn": {"type": "BinaryBaselineUNet", "binarizer": "bnn", "fp_res": [16]},
    "ir_net": {"type": "BinaryBaselineUNet", "binarizer": "ir_net", "fp_res": [16]},
}


def unet(kind: str = "bi_diffsr", **changes: Any) -> dict[str, Any]:
    """The block of a network of two levels, four channels wide."""
    return {**UNETS[kind], "inner_channel": 4, "norm_groups": 2, "channel_mults": [1, 2], "res_blocks": 1,
            "dropout": 0.3, "image_size": 16, "total_step": 12, **changes}


def diffusion_options(kind: str = "bi_diffsr", **changes: Any) -> dict[str, Any]:
    """A training file of a few iterations, with dropout, EMA and mixed timestep groups."""
    options = common_options()
    for data in options["datasets"].values():
        data["type"] = "MultiPairedImageDataset"
    return options | {
        "name": "diffusion", "model_type": "BIDiffSRModel", "network_g": unet(kind, **changes),
        "beta_schedule": {"n_timestep": 12, "linear_start": 1e-4, "linear_end": 0.5, "num_inference_steps": 3},
        "train": {"total_iter": 4, "ema_decay": 0.9, "optim_g": {"type": "Adam", "lr": 2e-3, "betas": [0.9, 0.99]}},
    }


def diffusion_test_options(options: dict[str, Any], weights: str) -> dict[str, Any]:
    """The test file that belongs to a training file."""
    kept = {name: value for name, value in options.items() if name not in ("train", "logger")}
    return kept | {"name": f"test_{options['name']}", "datasets": {"test_1": options["datasets"]["val"]},
                   "path": {"pretrain_network_g": weights}}
