"""``bench linear``: a Linear with 8-bit input and weight, quantized inside the measurement."""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional

from basicsr_quant.deploy import native
from basicsr_quant.deploy.native.grids import ActivationGrid
from basicsr_quant.deploy.native.linear import LinearPart, NativeLinear
from basicsr_quant.deploy.runtimes.native_bf16 import multiplies_bf16
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import TensorRecipe
from basicsr_quant.report.bench import layers
from basicsr_quant.report.bench.driver import Report
from basicsr_quant.report.bench.layers import INPUTS, Layer

HELP = "Linear layers on codes against float32, bfloat16 and the simulation"
SHAPES = ((60, 60), (60, 120), (60, 180), (120, 60), (320, 320))
BITS, RANGE = 8, 3.0
FP32, BF16, SIMULATED = "fp32", "bf16", "simulated"
INT_MM, ONEDNN, NATIVE = "torch._int_mm, eager", "onednn int8, eager codes", "native"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be asked."""
    layers.add_arguments(parser)
    parser.add_argument("--tokens", type=int, default=4096, help="rows of the input")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=list(SHAPES), metavar="INxOUT")


def _shape(text: str) -> tuple[int, int]:
    inputs, outputs = map(int, text.split("x"))
    return inputs, outputs


def run(arguments: argparse.Namespace) -> Report:
    """Measure all shapes.

    Raises:
        UserError: Rounds are not positive.
    """
    layers.check_arguments(arguments, "linear")
    report = layers.begin(f"bench linear: {arguments.tokens} tokens, {BITS} bits", arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    with torch.no_grad():
        for inputs, outputs in arguments.shapes:
            weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
            bias = torch.randn(outputs, generator=generator)
            images = [torch.randn(arguments.tokens, inputs, generator=generator) for _ in range(INPUTS)]
            _Case(weight, bias).measure(report, images, arguments.rounds)
    report.notes.append(
        "speed-up: over fp32, the median of the ratios of single rounds. error: largest against float64, over the "
        "largest value; for bf16 of the unquantized layer, for the others that compute on codes of the quantized one. "
        "Quantizing the input and the float32 result are inside every time but those of fp32 and bf16.")
    return report


class _Case:
    """One weight, and its ways of being multiplied."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias
        grid = TensorRecipe.parse({"bits": BITS, "grid": "float_offset"}, "bench")
        self.activation, self.quantizer = Quantizer(grid), Quantizer(grid)
        self.activation.set_bounds(torch.tensor(-RANGE), torch.tensor(RANGE))
        self.quantizer.set_bounds(weight.min(), weight.max())
        self.rounded = self.quantizer(weight)
        self.codes = self.quantizer.encode(weight)

    def measure(self, report: Report, images: list[torch.Tensor], rounds: int) -> None:
        """Add the table of this weight."""
        weight16, bias16 = self.weight.bfloat16(), self.bias.bfloat16()
        variants: dict[str, Layer] = {FP32: lambda x: functional.linear(x, self.weight, self.bias)}
        if multiplies_bf16():
            variants[BF16] = lambda x: functional.linear(x.bfloat16(), weight16, bias16).float()
        variants[SIMULATED] = lambda x: functional.linear(self.activation(x), self.rounded, self.bias)
        variants[INT_MM] = self._int_mm()
        if layers.onednn_has("qlinear_pointwise"):
            variants[ONEDNN] = self._onednn()
        if native.available():
            step, first = self.quantizer.affine()
            part = LinearPart(ActivationGrid.of(self.activation), self.codes, step, first, BITS, self.bias)
            variants[NATIVE] = NativeLinear([part])
        wanted: dict[str, Layer] = dict.fromkeys(variants, self._quantized)
        wanted[FP32] = wanted[BF16] = self._exact
        outputs, inputs = self.weight.shape
        layers.compare(report, f"{inputs} -> {outputs}", variants, wanted, images, rounds)

    def _exact(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.double(), self.weight.double(), self.bias.double())

    def _quantized(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.activation(x).double(), self.rounded.double(), self.bias.double())

    def _int_mm(self) -> Layer:
        step, first = (value.item() for value in self.activation.affine())
        weight_step, weight_first = (value.item() for value in self.quantizer.affine())
        half = 2 ** (BITS - 1)
        weight = (self.codes.int() - half).to(torch.int8).t().contiguous()
        activation_middle, weight_middle = first + half * step, weight_first + half * weight_step
        sums = self.rounded.double().sum(1).mul(activation_middle).float() + self.bias

        def layer(x: torch.Tensor) -> torch.Tensor:
            codes = (self.activation.encode(x) - half).view(torch.int8)
            products = torch._int_mm(codes, weight).float().mul_(step * weight_step)
            rows = codes.sum(1, dtype=torch.int32).float().mul_(step * weight_middle)
            return products.add_(rows[:, None]).add_(sums)

        return layer

    def _onednn(self) -> Layer:
        step, first = (value.item() for value in self.activation.affine())
        weight_step, weight_first = (value.item() for value in self.quantizer.affine())
        half = 2 ** (BITS - 1)
        weight = torch.ops.onednn.qlinear_prepack((self.codes.int() - half).to(torch.int8), None)
        scales, zeros = torch.tensor([weight_step]), torch.zeros(1, dtype=torch.int64)
        middle = weight_first + half * weight_step
        bias = self.rounded.double().sum(1).mul(first).float() + self.bias

        def layer(x: torch.Tensor) -> torch.Tensor:
            codes = self.activation.encode(x)
            y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
                codes, step, 0, weight, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], "")
            return y.add_(codes.sum(1, dtype=torch.int32).float().mul_(step * middle)[:, None])

        return layer
