"""A UNet and a VAE of OSEDiff's structure that train in seconds, a workshop with their weights, and option files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from workshop import REPOSITORY, Workshop, common_options

from basicsr_quant.archs.build import build_network

UNET = {"type": "SDUNet", "block_out_channels": [8, 16], "attention_levels": 1, "layers_per_block": 1,
        "attention_head_dim": [1, 2], "cross_attention_dim": 8, "latent_channels": 4, "norm_num_groups": 4}
VAE = {"type": "SDVAE", "block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4,
       "norm_num_groups": 4, "scaling_factor": 1.0}
FP = {"pretrain_network_unet": "weights/unet.pth", "pretrain_network_vae": "weights/vae.pth"}
BASELINES_FOLDER = REPOSITORY / "options/train/PassionSR_baselines"
BASELINES = sorted(path.stem.removeprefix("train_").removesuffix("_tiny") for path in BASELINES_FOLDER.glob("*.yml"))
SMALL = {"network_unet": UNET, "network_vae": VAE, "scale": 2, "num_gpu": 0, "manual_seed": 7,
         "one_step": {"timestep": 249, "scaled_input": True, "random_context": 3}}


@pytest.fixture
def place(workshop: Workshop) -> Workshop:
    """A workshop whose folder ``weights`` holds both networks."""
    for part, block in (("unet", UNET), ("vae", VAE)):
        torch.manual_seed(3)
        network = build_network(block["type"], {key: item for key, item in block.items() if key != "type"})
        torch.save({"params": network.state_dict()}, workshop.folder / "weights" / f"{part}.pth")
    return workshop


def osediff_options(name: str = "tiny") -> dict[str, Any]:
    """OSEDiff from scratch: VAE, UNet, LoRA, two iterations each."""
    return common_options() | {
        "name": name, "model_type": "OSEDiffModel", "network_unet": dict(UNET), "network_vae": dict(VAE),
        "one_step": {"timestep": 249, "scaled_input": True, "random_context": 3},
        "pipeline": {"process_size": 16, "color_fix": "nofix", "posterior": "sample"},
        "lora": {"rank_unet": 2, "rank_vae": 2},
        "train": {"total_iter": 6, "optim": {"type": "AdamW", "lr": 1e-3}, "pixel_opt": {"type": "MSELoss"},
                  "stages": {"vae": {"iterations": 2, "lr": 2e-3, "scheduler": {"type": "CosineAnnealingLR"}},
                             "unet": {"iterations": 2, "train_encoder": True}, "lora": {"iterations": 2}}},
    }


def passionsr_options(name: str = "tiny", mode: str = "corrected", only_unet: bool = False) -> dict[str, Any]:
    """PassionSR, two iterations for each of its stages."""
    options = common_options() | {
        "name": name, "model_type": "PassionSRModel", "mode": mode, "network_unet": dict(UNET),
        "network_vae": dict(VAE), "one_step": {"timestep": 249, "scaled_input": True, "random_context": 3},
        "pipeline": {"process_size": 16, "color_fix": "nofix", "fit": "lanczos_exact",
                     "tiles": {"latent": 8, "latent_overlap": 4}},
        "quant": {"weight_bits": 6, "activation_bits": 6, "only_unet": only_unet, "calibration": {"batch_size": 2}},
        "path": dict(FP), "train": {"total_iter": 4 if only_unet else 12},
    }
    options["datasets"]["train"]["batch_size_per_gpu"] = 1
    options["datasets"]["val"]["only_last"] = 1
    options["val"] |= {"val_freq": 100, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2}}}
    return options


def baseline_options(name: str, quick: bool = False) -> dict[str, Any]:
    """The baseline's file with small networks, small data and few iterations."""
    published = yaml.safe_load((BASELINES_FOLDER / f"train_{name}_tiny.yml").read_text())
    options: dict[str, Any] = published | SMALL | {"name": name}
    options["pipeline"] = {"process_size": 16, "color_fix": "nofix"}
    options["path"] = dict(FP)
    roots = {"dataroot_gt": "data/train/HR", "dataroot_lq": "data/train/LR", "filename_tmpl": "{}x2"}
    options["datasets"]["train"] |= {**roots, "gt_size": 16, "exclude_last": 0, "batch_size_per_gpu": 2}
    options["datasets"]["val"] |= {key: value.replace("train", "val") for key, value in roots.items()} | {
        "only_last": 2, "crop_size": None}
    for key in ("weight_observer", "activation_observer", "product_observer"):
        if isinstance(options["quant"][key], dict) and options["quant"][key]["type"] == "dobi":
            options["quant"][key] |= {"candidates": 8}
    if options["train"]["total_iter"]:
        options["train"]["total_iter"] = 6
    for stage in options["train"].get("stages", {}).values():
        if "per_block" in stage:
            stage["per_block"] = 2
    if quick and options["train"]["order"]:
        parts = ("encoder",) if name == "Q_Diffusion" else ("encoder", "decoder")
        options["train"]["order"] = [stage for stage in options["train"]["order"] if stage.startswith(parts)]
    options["val"] |= {"val_freq": 10**6, "save_img": True}
    options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 10**6}
    return options
