"""``bench bi_diffsr``: one denoising step of BI-DiffSR's UNet, on bits, against full precision and the released way."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from basicsr_quant.archs.bi_diffsr_unet import BIDiffSRUNet
from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.report.bench import forms
from basicsr_quant.report.bench.driver import Report
from basicsr_quant.report.bench.forms import Form
from basicsr_quant.report.bench.released_binary import with_released_convolutions

HELP = "a denoising step of BI-DiffSR on bits against full precision"
THREADS = 1
RELEASED, CLEAN = "fp32, as released", "fp32, clean, channels last"
TIMESTEP = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be asked."""
    parser.add_argument("--size", type=int, default=256, help="side of the image, a multiple of 8")
    parser.add_argument("--channels", type=int, default=64, help="width of the first level, a multiple of 16")
    parser.add_argument("--seed", type=int, default=0)
    forms.add_arguments(parser)


class Step(nn.Module):
    """A step whose timestep group the caller knows, as sampling does it.

    Args:
        network: A UNet in eval mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the noise (B, 3, H, W)."""
        result: Tensor = self.network(image, condition, timesteps, group=0)
        return result


@torch.no_grad()
def run(arguments: argparse.Namespace) -> Report:
    """Measure all forms.

    Raises:
        UserError: Rounds are not positive, or a size does not suit the network.
    """
    forms.check_arguments(arguments, "bi_diffsr")
    settings = {key: getattr(arguments, key) for key in ("size", "channels", "seed", "rounds")}
    report = forms.begin(f"bench bi_diffsr: one step, {arguments.channels} channels, batch 1x3x{arguments.size}x"
                         f"{arguments.size}", settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        network = Step(BIDiffSRUNet(inner_channel=arguments.channels)).eval()
        inputs = [*torch.randn(2, 1, 3, arguments.size, arguments.size), torch.full((1, 1), TIMESTEP)]
    last = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    released = with_released_convolutions(network)
    clean: nn.Module = freeze(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = {RELEASED: Form(lambda: released(*inputs), CLEAN), CLEAN: Form(lambda: clean(*last), CLEAN),
             **forms.float_forms(clean, last, CLEAN, arguments.compile), **forms.backend_forms(clean, last, CLEAN)}
    forms.compare(report, "One step", found, [CLEAN, RELEASED], arguments.rounds)
    report.notes.append(
        f"'{RELEASED}': weights are made binary in every call, and the functions behind the replaced gradients are "
        f"computed. '{CLEAN}': signs made once, nothing of the training.")
    return report
