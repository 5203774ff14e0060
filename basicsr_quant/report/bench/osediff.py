"""``bench osediff``: OSEDiff's pipeline quantized as PassionSR does it, against full precision."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import nn

from basicsr_quant.archs.osediff import SD21_UNET, SD21_VAE
from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.options import restored_options
from basicsr_quant.errors import UserError
from basicsr_quant.models.osediff_networks import skeleton_pipeline
from basicsr_quant.models.passionsr_prepare import plan_of, prepare_pipeline
from basicsr_quant.options.methods.passionsr import PassionSROptions
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.report.bench import forms
from basicsr_quant.report.bench.driver import Report
from basicsr_quant.report.bench.forms import FP32, SIMULATED, Form

HELP = "OSEDiff quantized as PassionSR does it, on its codes, against full precision"
THREADS = 1
SCALE, GROUPS = 4, 32
ROUNDING = "simulated, weights rounded in every call"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be asked."""
    parser.add_argument("--size", type=int, default=256, help="side of the enlarged image, a multiple of 32")
    parser.add_argument("--narrower", type=int, default=4, choices=(1, 2, 4, 8, 16, 32, 64),
                        help="divide the channels of Stable Diffusion 2.1 by this; 1 is its own size and takes 20 GB")
    parser.add_argument("--bits", type=int, default=8, choices=range(2, 9), metavar="2-8")
    parser.add_argument("--seed", type=int, default=0)
    forms.add_arguments(parser)


class Restoration(nn.Module):
    """What the pipeline does with an image that is enlarged already.

    Args:
        pipeline: In eval mode.
    """

    def __init__(self, pipeline: OSEDiff) -> None:
        super().__init__()
        self.pipeline = pipeline

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Restore (B, 3, H, W) in [0, 1]."""
        return self.pipeline.decode(self.pipeline.one_step(self.pipeline.encode(image)))


@torch.no_grad()
def run(arguments: argparse.Namespace) -> Report:
    """Measure all forms.

    Raises:
        UserError: Rounds are not positive, or a size does not suit the networks.
    """
    forms.check_arguments(arguments, "osediff")
    if arguments.size < 1 or arguments.size % 32:
        raise UserError(f"bench osediff: --size must be a positive multiple of 32, found {arguments.size}")
    settings = {key: getattr(arguments, key) for key in ("size", "narrower", "bits", "seed", "rounds")}
    report = forms.begin(f"bench osediff: UNet and VAE of Stable Diffusion 2.1 with 1/{arguments.narrower} of its "
                         f"channels, W{arguments.bits}A{arguments.bits}, {arguments.size}x{arguments.size}", settings)
    options = _options(arguments.narrower, arguments.bits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        pipeline = skeleton_pipeline(options).eval()
        pipeline.context.normal_()
        images = torch.rand(1, 3, arguments.size, arguments.size)
    rounding = Restoration(prepare_pipeline(copy.deepcopy(pipeline), plan_of(options, pipeline))).eval()
    calibrate(rounding, [images], allow_degenerate=True)
    frozen = freeze(copy.deepcopy(rounding))
    last: Any = Restoration(pipeline).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = {ROUNDING: Form(lambda: rounding(images), SIMULATED), SIMULATED: Form(lambda: frozen(images), SIMULATED),
             FP32: Form(lambda: last(images), FP32), **forms.float_forms(last, [images], FP32, arguments.compile),
             **forms.backend_forms(frozen, [images], SIMULATED)}
    forms.compare(report, "One image", found, [FP32, SIMULATED, ROUNDING], arguments.rounds)
    report.notes.append("Random weights; encoder, UNet and decoder. fp32 is channels last.")
    return report


def _options(narrower: int, bits: int) -> PassionSROptions:
    """Return the options of a PassionSR, weights in one piece, on narrower networks."""
    def narrow(channels: Any) -> list[int]:
        return [width // narrower for width in channels]

    groups = max(1, GROUPS // narrower)
    unet = {"type": "SDUNet", "block_out_channels": narrow(SD21_UNET["block_out_channels"]),
            "cross_attention_dim": SD21_UNET["cross_attention_dim"] // narrower, "norm_num_groups": groups}
    vae = {"type": "SDVAE", "block_out_channels": narrow(SD21_VAE["block_out_channels"]), "norm_num_groups": groups}
    options = restored_options({
        "name": "bench", "model_type": "PassionSRModel", "mode": "corrected", "scale": SCALE, "network_unet": unet,
        "network_vae": vae, "quant": {"weight_bits": bits, "activation_bits": bits}}, "bench osediff")
    assert isinstance(options, PassionSROptions)
    return options
