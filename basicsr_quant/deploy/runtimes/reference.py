"""``reference``: every product of quantized tensors is an exact sum of integers; slow, and right on any device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.deploy.freeze import replace_module
from basicsr_quant.deploy.frozen import FrozenBinaryConv2d, FrozenConv2d, FrozenLinear, FrozenWeighted
from basicsr_quant.quant import exact
from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.foreign import MATMUL
from basicsr_quant.quant.layers.conv2d import border_term
from basicsr_quant.quant.quantizer import Quantizer, State

LAYOUTS = frozenset({
    torch.Tensor.view, torch.Tensor.reshape, torch.Tensor.transpose, torch.Tensor.permute, torch.Tensor.contiguous,
    torch.Tensor.unflatten, torch.Tensor.flatten, torch.Tensor.expand, torch.Tensor.clone, torch.Tensor.t,
    torch.transpose, torch.permute, torch.reshape, torch.flatten, torch.unflatten})


class Reference:
    """Layers and products of attention on codes; layers with one operand in floating point stay simulated."""

    def missing(self) -> None:
        """Return None: it runs everywhere."""
        return

    def attach(self, network: nn.Module) -> nn.Module:
        """Replace layers and quantizers of operands."""
        owned = {id(quantizer) for _, layer in network.named_modules() if isinstance(layer, FrozenWeighted)
                 for _, quantizer in named_quantizers(layer)}
        for name, module in list(network.named_modules()):
            if isinstance(module, Quantizer) and id(module) not in owned:
                replace_module(network, name, RoundedOperand(module))
            elif (isinstance(module, (FrozenLinear, FrozenConv2d)) and module.weight_quantizer is not None
                  and module.activation_quantizer is not None):
                replace_module(network, name, ReferenceLayer(module))
            elif isinstance(module, FrozenBinaryConv2d):
                replace_module(network, name, ReferenceBinaryConv2d(module))
        return network


class ReferenceLayer(nn.Module):
    """A frozen Linear or Conv2d that multiplies codes.

    Args:
        layer: Weight and input are quantized.
    """

    def __init__(self, layer: FrozenLinear | FrozenConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map what the layer maps."""
        layer = self.layer
        if isinstance(layer, FrozenConv2d) and layer.pads_input:
            x = functional.pad(x, layer.pads)
        dtype, seen = x.dtype, layer.transformed_input(x)
        assert layer.activation_quantizer is not None and layer.weight_quantizer is not None
        assert layer.weight_codes is not None
        channels = layer.channel_axis % x.dim()
        codes = exact.coded(layer.activation_quantizer, exact.encode(layer.activation_quantizer, seen), channels)
        weight = exact.coded(layer.weight_quantizer, layer.weight_codes, 1)
        if isinstance(layer, FrozenConv2d):
            y = exact.conv2d(codes, weight, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            y = exact.linear(codes, weight)
        shape = (-1, 1, 1) if isinstance(layer, FrozenConv2d) else (-1,)
        for term in (layer.decoded_bias(), layer.term):
            y = y if term is None else y + term.double().view(shape)
        if isinstance(layer, FrozenConv2d) and layer.border is not None:
            y = y + border_term(layer, codes.codes, layer.border.double())
        return y.to(dtype)


class ReferenceBinaryConv2d(nn.Module):
    """A frozen binary convolution whose sums are exact.

    Args:
        layer: What it replaces.
    """

    def __init__(self, layer: FrozenBinaryConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        layer = self.layer
        binary = x if layer.activation_binarizer is None else layer.activation_binarizer(x)
        with torch.backends.cudnn.flags(enabled=False):
            sums = functional.conv2d(binary.double(), layer.signs.double(), padding=layer.padding)
        return layer.finished(sums.to(x.dtype), x)


class RoundedOperand(nn.Module):
    """A quantizer whose result remembers its codes until it meets another one in a matrix product.

    Args:
        quantizer: Of an operand.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rounded tensor."""
        quantizer = self.quantizer
        if quantizer.state is not State.QUANTIZE:
            raise ValueError(f"an operand's quantizer is in state {quantizer.state.value}")
        return _Remembering.around(quantizer(x), exact.coded(quantizer, quantizer.encode(x), x.dim() - 1))


class _Remembering(torch.Tensor):
    """A tensor with its codes, which changes of its layout keep and a matrix product of two such tensors uses."""

    coded: exact.Coded

    @staticmethod
    def around(values: torch.Tensor, coded: exact.Coded) -> _Remembering:
        result = values.as_subclass(_Remembering)
        result.coded = coded
        return result

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if function in MATMUL and len(args) == 2 and all(isinstance(operand, cls) for operand in args):
                return exact.matmul(args[0].coded, args[1].coded).to(args[0].dtype)
            plain = [arg.as_subclass(torch.Tensor) if isinstance(arg, cls) else arg for arg in args]
            result = function(*plain, **kwargs)
            if function in LAYOUTS and isinstance(args[0], cls):
                codes = args[0].coded
                return cls.around(result, codes._replace(codes=function(codes.codes, *args[1:], **kwargs)))
            return result
