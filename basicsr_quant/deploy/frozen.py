"""Layers whose weights are nothing but codes, bounds and scales; they compute what the simulation computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.quant import exact
from basicsr_quant.quant.binary.conv2d import BinaryConv2d, scaled_sums
from basicsr_quant.quant.layers.conv2d import QuantConv2d, border_term
from basicsr_quant.quant.layers.weighted import Parts, QuantWeighted
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.split_quantizer import SplitQuantizer


class FrozenWeighted(nn.Module):
    """A quantized layer for inference: y = Q((x - o) / s) W' + b' + t, W' and b' decoded from codes.

    What is not quantized is a parameter. The transformation's scale is in the codes; (x - o) / s stays, unless the norm
    in front does it. Its term W o is ``border`` (a kernel for ones inside the image) or ``term`` (a number per output).

    Args:
        layer: Its quantizers are taken over.
        empty: Whether values come later, from a file; those of ``layer`` are then not read.

    Raises:
        ValueError: The layer is still being learned (its parametrization was not merged).
    """

    weight_codes: torch.Tensor | None
    bias_codes: torch.Tensor | None

    def __init__(self, layer: QuantWeighted, empty: bool = False) -> None:
        super().__init__()
        if layer.parametrization is not None:
            raise ValueError("merge the weights of a layer before it is frozen")
        self.channel_axis = layer.channel_axis
        self.weight_quantizer = layer.weight_quantizer
        self.activation_quantizer = layer.activation_quantizer
        self.bias_quantizer = layer.bias_quantizer
        self.let = layer.let if layer.let is not None and not layer.let.input_is_transformed else None
        self.has_border = layer.has_border()
        self.register_buffer("weight_codes", None, persistent=False)
        self.register_buffer("bias_codes", None, persistent=False)
        with torch.no_grad():
            weight = layer.weight.detach() if empty else layer.transformed_weight().detach()
            bias = None if layer.bias is None else layer.bias.detach()
            border = None if layer.let is None else (
                weight.new_empty(weight.shape[0], 1, *weight.shape[2:]) if empty
                else layer.let.border(layer.changed_weight().detach()))
            self.weight_shape = weight.shape
            if self.weight_quantizer is not None:
                self.weight_codes = _codes(self.weight_quantizer, weight, empty)
            self.weight = None if self.weight_quantizer is not None else _parameter(weight)
            if self.bias_quantizer is not None and bias is not None:
                self.bias_codes = _codes(self.bias_quantizer, bias, empty)
            self.bias = None if bias is None or self.bias_quantizer is not None else _parameter(bias)
            self.border = _parameter(border) if border is not None and self.has_border else None
            self.term = (_parameter(border.flatten(1).sum(1)) if border is not None and not self.has_border else None)
        self._parts: Parts | None = None

    def parts(self) -> Parts:
        """Return what the rounded input meets, decoded at the first call."""
        if self._parts is None:
            weight, bias = self.decoded_weight(), self.decoded_bias()
            if self.term is not None:
                bias = self.term if bias is None else bias + self.term
            self._parts = Parts(weight.detach(), None if bias is None else bias.detach(), self.border)
        return self._parts

    def decoded_weight(self) -> torch.Tensor:
        """Return the weight (O, I, ...)."""
        if self.weight_quantizer is None or self.weight_codes is None:
            assert self.weight is not None
            return self.weight
        return exact.decode(self.weight_quantizer, self.weight_codes)

    def decoded_bias(self) -> torch.Tensor | None:
        """Return the bias (O,) without the transformation's term."""
        if self.bias_quantizer is None or self.bias_codes is None:
            return self.bias
        return exact.decode(self.bias_quantizer, self.bias_codes)

    def transformed_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the activation quantizer sees."""
        return x if self.let is None else self.let(x, self.channel_axis)

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rounded input."""
        x = self.transformed_input(x)
        return x if self.activation_quantizer is None else self.activation_quantizer(x)

    def _apply(self, *args: object, **kwargs: object) -> FrozenWeighted:
        self._parts = None
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self


class FrozenLinear(FrozenWeighted):
    """y = Q(x) W'^T + b'."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        weight, bias, _ = self.parts()
        return functional.linear(self.quantized_input(x), weight, bias)


class FrozenConv2d(FrozenWeighted):
    """y = Q(x) * W' + b', padded as :class:`QuantConv2d` pads.

    Args:
        layer: The quantized convolution.
        empty: See :class:`FrozenWeighted`.
    """

    def __init__(self, layer: QuantConv2d, empty: bool = False) -> None:
        super().__init__(layer, empty)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.pads, self.pads_input = layer.pads, layer.pads_input
        self.padding: str | Sequence[int] = layer.padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H', W')."""
        x = self.quantized_input(functional.pad(x, self.pads) if self.pads_input else x)
        weight, bias, border = self.parts()
        y = functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y if border is None else y + border_term(self, x, border)


class FrozenBinaryConv2d(nn.Module):
    """y = scale * (binary(x) * signs) (+ b), as :class:`BinaryConv2d` without latent weights.

    Args:
        layer: The binary convolution. Its signs are kept as int8; -1 and +1, and 0 for weights of exactly 0.
    """

    signs: torch.Tensor

    def __init__(self, layer: BinaryConv2d) -> None:
        super().__init__()
        with torch.no_grad():
            signs, scale = layer.binary_weight()
        self.register_buffer("signs", signs.detach().to(torch.int8), persistent=False)
        self.scale = None if scale is None else nn.Parameter(scale.detach().clone(), requires_grad=False)
        self.bias = None if layer.bias is None else _parameter(layer.bias.detach())
        self.activation_binarizer = layer.activation_binarizer
        self.spatial_scale, self.kernel_size, self.padding = layer.spatial_scale, layer.kernel_size, layer.padding
        self._values: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        binary = x if self.activation_binarizer is None else self.activation_binarizer(x)
        return self.finished(functional.conv2d(binary, self.values(x.dtype), padding=self.padding), x)

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the signs in a floating-point dtype, converted once."""
        if self._values is None or self._values.dtype != dtype:
            self._values = self.signs.to(dtype)
        return self._values

    def finished(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output from the sums of signs.

        Args:
            y: Sums (B, O, H, W).
            x: The layer's input (B, C, H, W).
        """
        return scaled_sums(y, x, self.scale, self.kernel_size if self.spatial_scale else None, self.bias)

    def _apply(self, *args: object, **kwargs: object) -> FrozenBinaryConv2d:
        self._values = None
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self


def _codes(quantizer: Quantizer | SplitQuantizer, tensor: torch.Tensor, empty: bool) -> torch.Tensor:
    return torch.empty_like(tensor, dtype=torch.uint8) if empty else exact.encode(quantizer, tensor)


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)
