"""``onednn``: Linear and Conv2d layers as 8-bit integer products of oneDNN, on CPUs that have them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.deploy.freeze import replace_module
from basicsr_quant.deploy.frozen import FrozenConv2d, FrozenLinear
from basicsr_quant.quant import exact
from basicsr_quant.quant.layers.conv2d import border_term
from basicsr_quant.quant.quantizer import Quantizer

logger = logging.getLogger("basicsr_quant")

PROBE_CHANNELS = 300
KEPT_SIZES = 8


class OneDnn:
    """Layers whose weight and input have one quantizer each; the others, and attention, stay simulated."""

    def missing(self) -> str | None:
        """Return what is missing, found out by calling the products with the largest codes."""
        try:
            return None if _exact() else "its sums of 8-bit products overflow on this CPU"
        except (AttributeError, RuntimeError, TypeError) as error:
            return f"this torch lacks its 8-bit products: {' '.join(str(error).split())[:80]}"

    def attach(self, network: nn.Module) -> nn.Module:
        """Replace the layers that can be."""
        layers = [(name, module) for name, module in network.named_modules()
                  if isinstance(module, (FrozenLinear, FrozenConv2d))]
        taken = [(name, module) for name, module in layers if suits(module)]
        for name, module in taken:
            replacement = OneDnnConv2d(module) if isinstance(module, FrozenConv2d) else OneDnnLinear(module)
            replace_module(network, name, replacement)
        logger.info("backend 'onednn' executes %d of %d quantized layers; the rest is simulated", len(taken),
                    len(layers))
        return network


class _OneDnnLayer(nn.Module):
    """What both kinds share: centred int8 weights with one more output, of ones, which sums the input's codes.

    y = s_a s_w sum(c_a (c_w - h)) + s_a (l_w + s_w h) sum(c_a) + l_a sum(W) + b, h = 2^(b-1).
    """

    def __init__(self, layer: FrozenLinear | FrozenConv2d) -> None:
        super().__init__()
        self.layer = layer
        quantizer, of_input = layer.weight_quantizer, layer.activation_quantizer
        assert isinstance(quantizer, Quantizer) and isinstance(of_input, Quantizer)
        self.input_codes = of_input.encode
        assert layer.weight_codes is not None
        outputs = layer.weight_codes.shape[0]
        weight = exact.coded(quantizer, layer.weight_codes, 1)
        middle = 2 ** (quantizer.bits - 1)
        step, first = (number.reshape(-1).expand(outputs) for number in (weight.step, weight.first))
        self.step, self.first = (float(number) for number in exact.affine(of_input))
        self.sum_factor = (first + step * middle).float()
        ones = torch.ones_like(layer.weight_codes[:1]).to(torch.int8)
        self.codes = torch.cat([(layer.weight_codes.short() - middle).to(torch.int8), ones])
        self.scales = torch.cat([step, step.new_ones(1)]).float()
        self.zero_points = torch.zeros(outputs + 1, dtype=torch.int32)
        self.values = weight.values
        terms = [term.double() for term in (layer.decoded_bias(), layer.term) if term is not None]
        self.bias = sum(terms, torch.zeros(outputs, dtype=torch.float64))


class OneDnnLinear(_OneDnnLayer):
    """A frozen Linear.

    Args:
        layer: On the CPU, with one quantizer for the weight and one for the input.
    """

    def __init__(self, layer: FrozenLinear) -> None:
        super().__init__(layer)
        self.offset = (self.bias + self.first * self.values.sum(1)).float()
        self.packed = torch.ops.onednn.qlinear_prepack(self.codes, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        codes = self.input_codes(self.layer.transformed_input(x))
        y = _linear(codes.flatten(0, -2), self.step, self.packed, self.scales, self.zero_points)
        y = torch.addcmul(self.offset, y[:, -1:], self.sum_factor).add_(y[:, :-1])
        return y.view(*x.shape[:-1], -1).to(x.dtype)


class OneDnnConv2d(_OneDnnLayer):
    """A frozen Conv2d without groups.

    Args:
        layer: On the CPU, with one quantizer for the weight and one for the input.
    """

    def __init__(self, layer: FrozenConv2d) -> None:
        super().__init__(layer)
        self.convolution = layer
        left, right, top, bottom = (0, 0, 0, 0) if layer.pads_input else layer.pads
        self.padding = [top, left]
        self.uneven = [left, right, top, bottom] if (left, top) != (right, bottom) else None
        self.geometry = ([*layer.stride], [0, 0] if self.uneven else self.padding, [*layer.dilation], 1)
        self.packed = torch.ops.onednn.qconv_prepack(self.codes, self.scales, self.step, 0, *self.geometry, None)
        self._offsets: dict[torch.Size, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H', W')."""
        layer = self.convolution
        if layer.pads_input:
            x = functional.pad(x, layer.pads)
        codes = self.input_codes(layer.transformed_input(x))
        offset = self._offset(codes)
        if self.uneven is not None:
            codes = functional.pad(codes, self.uneven)
        y = torch.ops.onednn.qconv_pointwise(
            codes.contiguous(memory_format=torch.channels_last), self.step, 0, self.packed, self.scales,
            self.zero_points, None, *self.geometry, 1.0, 0, torch.float32, "none", [], "")
        return self.finished(y, offset).to(x.dtype)

    def finished(self, y: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Return the output (B, O, H', W') from sums (B, O + 1, H', W') and what does not depend on the codes."""
        return torch.addcmul(offset, y[:, -1:], self.sum_factor.view(-1, 1, 1)).add_(y[:, :-1])

    def _offset(self, codes: torch.Tensor) -> torch.Tensor:
        """Return what does not depend on the codes, (1, O, H', W'), kept for the last few sizes."""
        layer, size = self.convolution, codes.shape[2:]
        if size not in self._offsets:
            if len(self._offsets) >= KEPT_SIZES:
                self._offsets.clear()
            inside = torch.ones((1, *codes.shape[1:]), dtype=torch.float64)
            total = self.first * functional.conv2d(inside, self.values, None, layer.stride, layer.padding,
                                                   layer.dilation)
            if layer.border is not None:
                total = total + border_term(layer, inside, layer.border.double())
            total = (total + self.bias.view(-1, 1, 1)).float()
            self._offsets[size] = total.contiguous(memory_format=torch.channels_last)
        return self._offsets[size]


def suits(layer: FrozenLinear | FrozenConv2d) -> bool:
    """Return whether a layer can be one of these: on the CPU, without groups, weight and input in one piece each."""
    quantizers = layer.weight_quantizer, layer.activation_quantizer
    return (all(isinstance(quantizer, Quantizer) for quantizer in quantizers) and getattr(layer, "groups", 1) == 1
            and next(layer.parameters()).device.type == "cpu")


def _linear(codes: torch.Tensor, step: float, packed: Any, scales: torch.Tensor,
            zero_points: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, step, 0, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], "")
    return result


def _exact() -> bool:
    """Whether sums of the largest products are right."""
    codes = torch.full((4, PROBE_CHANNELS), 255, dtype=torch.uint8)
    weight = torch.full((8, PROBE_CHANNELS), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    sums = _linear(codes, 1.0, packed, torch.ones(8), torch.zeros(8, dtype=torch.int32))
    return bool((sums == 255 * 127 * PROBE_CHANNELS).all())
