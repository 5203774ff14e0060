"""A frozen network in which everything that is rounded shows in a recording."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.archs.padding import run_padded
from basicsr_quant.deploy.freeze import frozen_layers, replace_module
from basicsr_quant.deploy.frozen import FrozenBinaryConv2d, FrozenConv2d, FrozenLinear
from basicsr_quant.deploy.onnx.graph import Graph, Value
from basicsr_quant.deploy.onnx.rounding import add_codes, add_rounding, check_grid
from basicsr_quant.deploy.onnx.table import Operand
from basicsr_quant.deploy.onnx.trace import Emit, marked
from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.layers.conv2d import border_term
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.split_quantizer import SplitQuantizer


class Padded(nn.Module):
    """A network that pads its input and crops its output, as testing does.

    Args:
        network: With ``window_multiple`` and ``minimum_size``, if it does not pad by itself.
        scale: Factor of the network.
    """

    def __init__(self, network: nn.Module, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) to (B, 3, scale*H, scale*W)."""
        return run_padded(self.network, image, self.scale, getattr(self.network, "window_multiple", 1),
                          getattr(self.network, "minimum_size", 0))


def activation_quantizers(network: nn.Module) -> list[tuple[str, Quantizer]]:
    """Return names and quantizers of a frozen network that round what depends on the input.

    Raises:
        UserError: A layer is binary, or a grid is not ONNX's.
    """
    fixed: set[int] = set()
    for name, layer in frozen_layers(network):
        if isinstance(layer, FrozenBinaryConv2d):
            raise UserError(f"'{name}' is a binary convolution, which has no operator in ONNX; run it by "
                            "'python -m basicsr_quant infer'")
        for part in (layer.weight_quantizer, layer.bias_quantizer):
            fixed |= {id(quantizer) for _, quantizer in named_quantizers(part)} if part is not None else set()
    found = list(named_quantizers(network))
    for name, quantizer in found:
        check_grid(quantizer, name)
    return [(name, quantizer) for name, quantizer in found if id(quantizer) not in fixed]


def mark(network: nn.Module) -> dict[str, Emit]:
    """Replace layers and quantizers of a frozen network by ones that mark what they round, in place.

    Args:
        network: Frozen.

    Returns:
        Name of a mark -> what stands for it in a graph.
    """
    marks: dict[str, Emit] = {}
    for name, rounding in activation_quantizers(network):
        marks[name] = partial(_rounded, name=name, quantizer=rounding)
        replace_module(network, name, Mark(name))
    for name, layer in list(frozen_layers(network)):
        if isinstance(layer, FrozenLinear | FrozenConv2d):
            replace_module(network, name, MarkedLayer(layer, name))
            for part, quantizer, codes in ((f"{name}.weight", layer.weight_quantizer, layer.weight_codes),
                                           (f"{name}.bias", layer.bias_quantizer, layer.bias_codes)):
                if quantizer is not None and codes is not None:
                    marks[part] = partial(_coded, name=part, quantizer=quantizer, codes=codes)
    return marks


class Mark(nn.Module):
    """Stands in the place of a quantizer.

    Args:
        name: Of the quantizer.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a copy of the tensor."""
        return marked(x, self.name)


class MarkedLayer(nn.Module):
    """A frozen Linear or Conv2d whose decoded weight and bias are marked.

    Args:
        layer: With quantizers of activations replaced.
        name: Of the layer.
    """

    def __init__(self, layer: FrozenLinear | FrozenConv2d, name: str) -> None:
        super().__init__()
        self.layer, self.name = layer, name
        self._decoded = layer.decoded_weight(), layer.decoded_bias()  # here, where it is not recorded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map what the layer maps."""
        layer, (weight, bias) = self.layer, self._decoded
        if isinstance(layer, FrozenConv2d) and layer.pads_input:
            x = functional.pad(x, layer.pads)
        weight = weight if layer.weight_codes is None else marked(weight, f"{self.name}.weight")
        if bias is not None and layer.bias_codes is not None:
            bias = marked(bias, f"{self.name}.bias")
        if layer.term is not None:
            bias = layer.term if bias is None else bias + layer.term
        x = layer.quantized_input(x)
        if isinstance(layer, FrozenLinear):
            return functional.linear(x, weight, bias)
        y = functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return y if layer.border is None else y + border_term(layer, x, layer.border)


def _rounded(graph: Graph, x: Operand, name: str, quantizer: Quantizer) -> Value:
    if isinstance(x, torch.Tensor):
        x = Value(graph.add("Identity", graph.constant(x)), tuple(x.shape), x.dtype)
    return add_rounding(graph, name, quantizer, x)


def _coded(graph: Graph, x: Operand, name: str, quantizer: Quantizer | SplitQuantizer, codes: torch.Tensor) -> Value:
    return Value(add_codes(graph, name, quantizer, codes), tuple(x.shape), x.dtype)
