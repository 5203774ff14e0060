"""``bench conv``: convolutions with 8-bit and with 1-bit operands, quantizing and packing inside the measurement."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch.nn import functional

from basicsr_quant.deploy import native
from basicsr_quant.deploy.native.binary_conv import NativeBinaryConv
from basicsr_quant.deploy.native.grids import ActivationGrid
from basicsr_quant.deploy.runtimes.native_bf16 import multiplies_bf16
from basicsr_quant.quant.binary.activations import SignActivation
from basicsr_quant.quant.binary.slopes import ClippedSlope
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import TensorRecipe
from basicsr_quant.report.bench import layers
from basicsr_quant.report.bench.driver import Report, require
from basicsr_quant.report.bench.layers import INPUTS, Layer

HELP = "convolutions on codes and on bits against float32, bfloat16 and the simulation"
SHAPES = ((64, 64), (64, 256), (128, 128), (256, 64), (512, 32))
BITS, RANGE = 8, 3.0
FP32, NCHW, BF16 = "fp32, channels last", "fp32, NCHW", "bf16, channels last"
SIMULATED, ONEDNN, KERNEL = "8 bit simulated", "8 bit onednn", "8 bit onednn, codes given"
SIGNS, NATIVE = "1 bit simulated", "1 bit native"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark can be asked."""
    layers.add_arguments(parser)
    parser.add_argument("--kernel", type=int, default=3, choices=(1, 3), help="side of the kernel")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=list(SHAPES), metavar="CHANNELSxSIDE")


def _shape(text: str) -> tuple[int, int]:
    channels, side = map(int, text.split("x"))
    return channels, side


def run(arguments: argparse.Namespace) -> Report:
    """Measure all shapes.

    Raises:
        UserError: Rounds are not positive, or the native convolution differs from the simulation.
    """
    layers.check_arguments(arguments, "conv")
    report = layers.begin(f"bench conv: {arguments.kernel}x{arguments.kernel}, batch 1", arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    with torch.no_grad():
        for channels, side in arguments.shapes:
            weight = torch.randn(channels, channels, arguments.kernel, arguments.kernel, generator=generator)
            weight = weight.contiguous(memory_format=torch.channels_last) / (arguments.kernel * channels**0.5)
            images = [torch.randn(1, channels, side, side, generator=generator).contiguous(
                memory_format=torch.channels_last) for _ in range(INPUTS)]
            _Case(weight).measure(report, images, arguments.rounds)
    report.notes.append(
        "speed-up: over fp32 channels last, the median of the ratios of single rounds. error: largest against float64 "
        "of what the variant computes, over the largest value. The simulations' weights are rounded before. "
        "Quantizing, packing and the float32 result are inside the times; 'codes given' leaves out the quantizing.")
    if native.available():
        report.notes.append("Checked: 1 bit native equals the simulation to the bit.")
    return report


class _Case:
    """One weight, and its ways of being convolved with."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self.padding = weight, weight.shape[-1] // 2
        recipe = TensorRecipe.parse({"bits": BITS, "grid": "int_zero_point"}, "bench")
        self.activation = Quantizer(recipe)
        self.activation.set_bounds(torch.tensor(-RANGE), torch.tensor(RANGE))
        self.scales = weight.abs().amax((1, 2, 3)) / (2 ** (BITS - 1) - 1)
        self.integers = torch.round(weight / self.scales.view(-1, 1, 1, 1)).to(torch.int8)
        self.rounded = self.integers.float() * self.scales.view(-1, 1, 1, 1)
        self.signs, self.alpha = weight.sign(), weight.abs().mean((1, 2, 3))
        self.sign = SignActivation(ClippedSlope())

    def measure(self, report: Report, images: list[torch.Tensor], rounds: int) -> None:
        """Add the table of this weight."""
        weight16, alpha = self.weight.bfloat16(), self.alpha.view(1, -1, 1, 1)
        plain = [self.weight.contiguous(), *(image.contiguous() for image in images)]
        nchw = {image.data_ptr(): copy for image, copy in zip(images, plain[1:], strict=True)}
        variants: dict[str, Layer] = {
            FP32: lambda x: self._convolve(x, self.weight),
            NCHW: lambda x: self._convolve(nchw[x.data_ptr()], plain[0]),
        }
        if multiplies_bf16():
            variants[BF16] = lambda x: self._convolve(x.bfloat16(), weight16).float()
        variants[SIMULATED] = lambda x: self._convolve(self.activation(x), self.rounded)
        if layers.onednn_has("qconv_pointwise"):
            convolve = self._onednn()
            encode = ActivationGrid.of(self.activation).encode if native.available() else None
            codes = {image.data_ptr(): self.activation.encode(image) for image in images}
            variants[ONEDNN] = lambda x: convolve(self._codes(x, encode))
            variants[KERNEL] = lambda x: convolve(codes[x.data_ptr()])
        variants[SIGNS] = lambda x: self._convolve(self.sign(x), self.signs).mul_(alpha)
        if native.available():
            variants[NATIVE] = NativeBinaryConv(self.signs, self.alpha, self.sign)
            require(torch.equal(variants[NATIVE](images[0]), variants[SIGNS](images[0])), f"'{NATIVE}', '{SIGNS}'")
        wanted: dict[str, Layer] = dict.fromkeys(
            variants, lambda x: self._convolve(self.activation(x).double(), self.rounded.double()))
        wanted |= dict.fromkeys((FP32, NCHW, BF16), lambda x: self._convolve(x.double(), self.weight.double()))
        wanted |= dict.fromkeys((SIGNS, NATIVE), lambda x: self._convolve(
            x.sign().double(), self.signs.double()) * alpha.double())
        _, channels, height, width = images[0].shape
        layers.compare(report, f"{channels} channels, {height}x{width}", variants, wanted, images, rounds)

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, weight, padding=self.padding)

    def _codes(self, x: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
        """Return the codes of x in its layout, by the fastest way there is."""
        if encode is None:
            return self.activation.encode(x)
        return encode(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _onednn(self) -> Layer:
        step, first = (value.item() for value in self.activation.affine())
        zero_point, ones, pads = round(-first / step), [1, 1], [self.padding] * 2
        weight = torch.ops.onednn.qconv_prepack(self.integers, self.scales, step, zero_point, ones, pads, ones, 1, None)
        zeros = torch.zeros(len(self.scales), dtype=torch.int64)

        def layer(codes: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = torch.ops.onednn.qconv_pointwise(
                codes, step, zero_point, weight, self.scales, zeros, None, ones, pads, ones, 1, 1.0, 0, torch.float32,
                "none", [], "")
            return y

        return layer
