"""What a denoising step of a binary or full-precision diffusion network holds and computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from basicsr_quant.quant.accounting import Account, LayerCount, account
from basicsr_quant.quant.binary.conv2d import binary_layers

_PREFIX = "network."


@dataclass(frozen=True)
class StepAccount:
    """One denoising step at one image size.

    Attributes:
        account: Layers with their bits, parameters, binary weights as codes, and as bounds their scales.
        resized: Output elements of nearest-neighbour resizing.
    """

    account: Account
    resized: int

    @property
    def binary_parameters(self) -> int:
        """Weights of binary convolutions."""
        return self.account.quantized_parameters

    @property
    def float_parameters(self) -> int:
        """All other parameters, without the scales, which follow from the weights."""
        return self.account.total_parameters - self.binary_parameters

    @property
    def binary_macs(self) -> int:
        """Multiply-accumulates of two operands of one bit."""
        return sum(layer.macs for layer in self.account.layers if layer.is_quantized)

    @property
    def float_macs(self) -> int:
        """All other multiply-accumulates."""
        return self.account.macs - self.binary_macs

    @property
    def normalized(self) -> int:
        """Elements that normalizations put out."""
        return sum(layer.macs for layer in self.account.layers if layer.kind == "norm")


class _DenoisingStep(nn.Module):
    """A network called with one image for both inputs, as :func:`account` calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.resized = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        timesteps = torch.zeros(image.shape[0], 1, dtype=torch.int64, device=image.device)
        result: torch.Tensor = self.network(image, image, timesteps, group=0)
        return result

    def count_resized(self, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        self.resized += output.numel()


def account_step(network: nn.Module, shape: Sequence[int]) -> StepAccount:
    """Count one denoising step.

    Args:
        network: Called with (image, condition, timesteps, group); best on the meta device.
        shape: Of the image, (B, 3, H, W).
    """
    step = _DenoisingStep(network)
    handles = [module.register_forward_hook(step.count_resized) for module in network.modules()
               if isinstance(module, nn.Upsample)]
    try:
        counted = account(step, shape)
    finally:
        for handle in handles:
            handle.remove()
    binary = dict(binary_layers(network))
    layers = [_named(layer, layer.name.removeprefix(_PREFIX) in binary) for layer in counted.layers]
    scales = [layer.binary_weight()[1] for layer in binary.values()]
    parameters = {name.removeprefix(_PREFIX): count for name, count in counted.parameters.items()}
    codes = {f"{name}.weight": (layer.weight.numel(), 1) for name, layer in binary.items()}
    shipped = sum(scale.numel() for scale in scales if scale is not None)
    return StepAccount(Account(layers, parameters, codes, shipped), step.resized)


def _named(layer: LayerCount, is_binary: bool) -> LayerCount:
    """Return the count under the network's own name, with one bit if the layer is binary."""
    layer = replace(layer, name=layer.name.removeprefix(_PREFIX))
    if not is_binary:
        return layer
    return replace(layer, quantized_parameters=layer.parameters, weight_bits=1, activation_bits=1)
