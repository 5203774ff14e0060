"""What a model holds and computes: parameters, multiply-accumulates and bytes, layer by layer.

Everything is counted in a forward pass on the meta device; no weights and no data are needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from basicsr_quant.quant.calibrate import named_quantizers
from basicsr_quant.quant.foreign import (
    MATMUL,
    Places,
    QuantizedModel,
    explicit_attention,
    inner_network,
    operand_name,
    operands_of,
)
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.split_quantizer import SplitQuantizer

BITS_OF_FLOAT = 32


@dataclass(frozen=True)
class LayerCount:
    """One layer, or one product inside a module.

    Attributes:
        name: Module name; products carry their operation, ``blocks.0.attn:matmul#0``.
        kind: ``linear``, ``conv2d``, ``matmul`` or ``norm``.
        macs: Multiply-accumulates in one forward pass; for a norm, elements.
        parameters: Weights and bias of this layer.
        quantized_parameters: Those that are stored as codes.
        weight_bits: Width of the weights, or of a product's right operand; 32 in full precision.
        activation_bits: Width of the input, or of a product's left operand; 32 in full precision.
        shape: Shape of the weight.
    """

    name: str
    kind: str
    macs: int
    parameters: int = 0
    quantized_parameters: int = 0
    weight_bits: int = BITS_OF_FLOAT
    activation_bits: int = BITS_OF_FLOAT
    shape: tuple[int, ...] = ()

    @property
    def is_quantized(self) -> bool:
        """Whether both operands are rounded, so that the products can run on codes."""
        return self.weight_bits < BITS_OF_FLOAT and self.activation_bits < BITS_OF_FLOAT


@dataclass(frozen=True)
class Account:
    """All layers of a model at one input size, and its parameters.

    Attributes:
        layers: In order of execution.
        parameters: Name -> number of elements of every parameter that is no bound.
        codes: Name of a weight's or bias's quantizer -> (elements, bits).
        bounds: Number of bound scalars.
    """

    layers: Sequence[LayerCount]
    parameters: dict[str, int]
    codes: dict[str, tuple[int, int]]
    bounds: int

    @property
    def total_parameters(self) -> int:
        """All parameters, without bounds."""
        return sum(self.parameters.values())

    @property
    def quantized_parameters(self) -> int:
        """Those stored as codes."""
        return sum(count for count, _ in self.codes.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(layer.macs for layer in self.layers if layer.kind != "norm")

    @property
    def packed_bytes(self) -> int:
        """Bytes of codes, bounds and the rest in float32, nothing left out."""
        codes = sum(math.ceil(count * bits / 8) for count, bits in self.codes.values())
        return codes + 4 * (self.total_parameters - self.quantized_parameters + self.bounds)

    @property
    def float_bytes(self) -> int:
        """Bytes of all parameters in float32."""
        return 4 * self.total_parameters


class _Count(TorchFunctionMode):
    """Record Linear, Conv2d, LayerNorm, GroupNorm and matrix products as they are called."""

    def __init__(self, model: nn.Module, places: Places) -> None:
        super().__init__()
        self._places = places
        self._modules_by_name = dict(inner_network(model).named_modules())
        self._operands: dict[str, Any] = dict(model.operands.items()) if isinstance(model, QuantizedModel) else {}
        self.found: dict[str, LayerCount] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            with self:
                return explicit_attention(*args, **kwargs)
        result = function(*args, **kwargs)
        if function in (functional.linear, functional.conv2d):
            kind = "linear" if function is functional.linear else "conv2d"
            self._add_weighted(kind, args[1] if len(args) > 1 else kwargs["weight"], result)
        elif function in MATMUL:
            self._add_product(operands_of(args, kwargs)[0], result)
        elif function in (functional.layer_norm, functional.group_norm):
            self._add(LayerCount(self._places.module, "norm", result.numel(), _size(self._here())))
        return result

    def _here(self) -> nn.Module:
        module: nn.Module = self._modules_by_name[self._places.module]
        return module

    def _add_weighted(self, kind: str, weight: torch.Tensor, result: torch.Tensor) -> None:
        module = self._here()
        per_output = weight[0].numel()
        macs, shape = result.numel() * per_output, tuple(weight.shape)
        count = LayerCount(self._places.module, kind, macs, _size(module), shape=shape)
        if isinstance(module, QuantWeighted) and weight.shape != module.weight.shape:
            count = LayerCount(f"{count.name}:border", kind, macs, shape=shape)  # the offset's term, in floating point
        elif isinstance(module, QuantWeighted):
            rounded = module.weight_quantizer
            count = LayerCount(count.name, kind, count.macs, count.parameters, weight.numel() if rounded else 0,
                               _bits(rounded), _bits(module.activation_quantizer), count.shape)
        self._add(count)

    def _add_product(self, left: torch.Tensor, result: torch.Tensor) -> None:
        module, place = self._places.here("matmul")
        names = [operand_name(place, side) for side in ("lhs", "rhs")]
        rounded = [self._operands.get(name) for name in names]
        products = getattr(self._modules_by_name[module], "products", ())
        number = int(place.rpartition("#")[2])
        if number < len(products):
            rounded = [getattr(self._modules_by_name[module], operand) for operand in products[number]]
        rounded = [quantizer if isinstance(quantizer, Quantizer) else None for quantizer in rounded]
        macs = result.numel() * left.shape[-1]
        self._add(LayerCount(place, "matmul", macs, 0, 0, _bits(rounded[1]), _bits(rounded[0])))

    def _add(self, count: LayerCount) -> None:
        before = self.found.get(count.name)
        macs = count.macs + (before.macs if before else 0)
        self.found[count.name] = LayerCount(count.name, count.kind, macs, count.parameters, count.quantized_parameters,
                                            count.weight_bits, count.activation_bits, count.shape)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for name, parameter in module.named_parameters(recurse=False))


def _bits(quantizer: Quantizer | SplitQuantizer | None) -> int:
    return BITS_OF_FLOAT if quantizer is None else quantizer.bits


@torch.no_grad()
def account(model: nn.Module, shape: Sequence[int]) -> Account:
    """Count a model at one input size.

    Args:
        model: Prepared or plain, best on the meta device.
        shape: Of the input, (B, 3, H, W).
    """
    network = inner_network(model)
    parameter = next(network.parameters())
    places = Places(network)
    counter = _Count(model, places)
    with places.following(), counter:
        network(torch.empty(tuple(shape), device=parameter.device, dtype=parameter.dtype))
    bounds = {id(bound) for _, quantizer in named_quantizers(model) for bound in quantizer.parameters()}
    parameters = {name: value.numel() for name, value in network.named_parameters() if id(value) not in bounds}
    codes = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantWeighted) and module.weight_quantizer is not None:
            codes[f"{name}.weight_quantizer"] = (module.weight.numel(), module.weight_quantizer.bits)
        if isinstance(module, QuantWeighted) and module.bias_quantizer is not None and module.bias is not None:
            codes[f"{name}.bias_quantizer"] = (module.bias.numel(), module.bias_quantizer.bits)
    scalars = sum(bound.numel() for _, quantizer in named_quantizers(model) for bound in quantizer.parameters())
    return Account(list(counter.found.values()), parameters, codes, scalars)
