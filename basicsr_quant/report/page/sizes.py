"""What a run is, and how many bytes its parameters take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from basicsr_quant.archs.diffusion_unet import DiffusionUNet
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.types import Options
from basicsr_quant.quant.accounting import BITS_OF_FLOAT, Account, account
from basicsr_quant.quant.binary.accounting import account_step
from basicsr_quant.quant.binary.conv2d import binary_layers
from basicsr_quant.quant.calibrate import activation_quantizers
from basicsr_quant.quant.layers.weighted import weighted_layers
from basicsr_quant.registry import MODELS

COUNTED_SIDE = 64
UPSCALING, FULL_PRECISION = "interpolation", "full precision"


@dataclass(frozen=True)
class Size:
    """A kind of run and its size.

    Attributes:
        kind: ``interpolation``, ``full precision``, or the widths of rounded weights and inputs, ``W3 A3``.
        bytes: Of all parameters: codes packed, bounds and scales and the rest in float32.
    """

    kind: str
    bytes: int

    @property
    def is_quantized(self) -> bool:
        """Whether something is rounded."""
        return self.kind not in (UPSCALING, FULL_PRECISION)


def size_of(options: Options) -> Size:
    """Count the network that a test's options describe.

    Where they leave the widths to the checkpoint, it is read.

    Raises:
        UserError: The network cannot be built.
    """
    quant = getattr(options, "quant", None)
    if getattr(quant, "bicubic", False) or getattr(quant, "upscale_only", "none") != "none":
        return Size(UPSCALING, 0)
    network = _network(options)
    kind, counted = _kind(network), _counted(network)
    if getattr(quant, "fp_test", False) or kind == FULL_PRECISION:
        return Size(FULL_PRECISION, counted.float_bytes)
    return Size(kind, counted.packed_bytes)


def _network(options: Options) -> nn.Module:
    method: type[RestorationModel] = MODELS.get(options.model_type)
    if getattr(options, "bit", 0) is None and getattr(options.path, "pretrain_network_Q", None) is not None:
        model = method(options, torch.device("cpu"))
        model.load_pretrained(training=False)
        return model.network.to("meta")
    with torch.device("meta"):
        return method.skeleton(options)


class _Still(nn.Module):
    """A network that does not run, for what is counted of parameters alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _counted(network: nn.Module) -> Account:
    with torch.device("meta"):
        if not isinstance(network, DiffusionUNet):
            return account(_Still(network), (1,))
        side = math.ceil(COUNTED_SIDE / network.window_multiple) * network.window_multiple
        return account_step(network, (1, 3, side, side)).account


def _kind(network: nn.Module) -> str:
    binary = [1 for _ in binary_layers(network)]
    weights = [quantizer.bits for _, layer in weighted_layers(network)
               for part, quantizer, _ in layer.rounded_parameters() if part.startswith("weight")]
    inputs = [quantizer.bits for _, quantizer in activation_quantizers(network)]
    if not (binary or weights or inputs):
        return FULL_PRECISION
    return f"W{_range(weights + binary)} A{_range(inputs + binary)}"


def _range(bits: Iterable[int]) -> str:
    """Return widths as ``3`` or ``3-8``, those of floats if there are none."""
    found = sorted(set(bits)) or [BITS_OF_FLOAT]
    return f"{found[0]}-{found[-1]}" if len(found) > 1 else str(found[0])
