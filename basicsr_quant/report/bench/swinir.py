"""``bench swinir``: SwinIR quantized as 2DQuant does it, executed by every backend, against full precision."""

from __future__ import annotations

import argparse

import torch

from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.report.bench import forms
from basicsr_quant.report.bench.driver import Report
from basicsr_quant.report.bench.forms import FP32, RELEASED, SIMULATED, Form
from basicsr_quant.report.bench.networks import Network
from basicsr_quant.report.bench.released_step import with_released_quantizers

HELP = "a quantized SwinIR on its codes against its simulation and full precision"
THREADS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be asked."""
    Network.add_arguments(parser, batch=1, device=False)
    forms.add_arguments(parser)


@torch.no_grad()
def run(arguments: argparse.Namespace) -> Report:
    """Measure all forms.

    Raises:
        UserError: Rounds are not positive.
    """
    forms.check_arguments(arguments, "swinir")
    network = Network.from_arguments(arguments)
    report = forms.begin(f"bench swinir: {network}", {**network.as_arguments(), "rounds": arguments.rounds})
    images, full = network.images(), network.full_precision()
    quantized = network.quantized("minmax")
    calibrate(quantized, [images])
    released = with_released_quantizers(quantized)
    frozen = freeze(quantized)
    found = {RELEASED: Form(lambda: released(images), SIMULATED), SIMULATED: Form(lambda: frozen(images), SIMULATED),
             FP32: Form(lambda: full(images), FP32), **forms.float_forms(full, [images], FP32, arguments.compile),
             **forms.backend_forms(frozen, [images], SIMULATED)}
    forms.compare(report, "One image", found, [FP32, SIMULATED, RELEASED], arguments.rounds)
    report.notes.append(f"'{RELEASED}': the released quantizers, which also round the weights in every call, on our "
                        "network, which is itself faster than the released one.")
    return report
