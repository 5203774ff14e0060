"""Quantized Linear layers in one pass: quantize, multiply codes, scale."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.deploy.frozen import FrozenLinear
from basicsr_quant.deploy.native.grids import ActivationGrid
from basicsr_quant.deploy.native.library import GridLayout, Library, LinearLayout, address, best_kernels, float_rows
from basicsr_quant.quant import exact
from basicsr_quant.quant.layers.linear import SplitLinear
from basicsr_quant.quant.quantizer import Quantizer

COLUMNS, DEPTH = 16, 4
LARGEST_INPUTS = (2**31 - 1) // (255 * 128)


@dataclass(frozen=True)
class LinearPart:
    """One matrix and the grid of the activation that it multiplies.

    Attributes:
        activation: Of the input.
        codes: (out, in) uint8; code c stands for ``first + c * step``.
        step: (out,) or (1,).
        first: As ``step``.
        bits: Of the codes.
        bias: (out,) or None.
    """

    activation: ActivationGrid
    codes: torch.Tensor
    step: torch.Tensor
    first: torch.Tensor
    bits: int
    bias: torch.Tensor | None

    @classmethod
    def of(cls, layer: FrozenLinear) -> LinearPart:
        """Return what a frozen layer does with its transformed input.

        Raises:
            ValueError: Weight or activation is not quantized as a whole.
        """
        weight, activation, codes = layer.weight_quantizer, layer.activation_quantizer, layer.weight_codes
        if not isinstance(weight, Quantizer) or not isinstance(activation, Quantizer) or codes is None:
            raise ValueError("native linear layers need one quantizer each for weight and activation")
        step, first = exact.affine(weight)
        terms = [term.double() for term in (layer.decoded_bias(), layer.term) if term is not None]
        return cls(ActivationGrid.of(activation), codes, step.flatten(), first.flatten(), weight.bits,
                   torch.stack(terms).sum(0) if terms else None)


class NativeLinear:
    """y = (gelu) (Q(norm x) Q(W)^T + b) (+ residual) for one matrix, or several that share x, side by side.

    Args:
        parts: Matrices of one shape.
        norm: A LayerNorm over the inputs that is done first, or None.
        gelu: Whether the exact GELU follows.
        kernels: Those of another level than the processor's best.

    Raises:
        ValueError: Shapes differ, or sums could exceed 32 bits.
    """

    def __init__(self, parts: Sequence[LinearPart], norm: nn.LayerNorm | None = None, gelu: bool = False,
                 kernels: Library | None = None) -> None:
        self.outputs, self.inputs = parts[0].codes.shape
        if any(part.codes.shape != parts[0].codes.shape for part in parts) or self.inputs > LARGEST_INPUTS:
            raise ValueError(f"native linear layers take matrices of one shape with at most {LARGEST_INPUTS} inputs")
        self.kernels, self.count = kernels or best_kernels(), len(parts)
        weight, start, scale, row_scale, constant = zip(*map(_arranged, parts), strict=True)
        self._kept = [torch.stack(weight), torch.stack(start),
                      torch.tensor([self.inputs * part.activation.code_of_zero for part in parts], dtype=torch.int32),
                      *(torch.stack(rows).float() for rows in (scale, row_scale, constant))]
        self._kept += [torch.empty(0)] * 2 if norm is None else [norm.weight.detach().clone(),
                                                               norm.bias.detach().clone()]
        self._grids = (GridLayout * self.count)(*(part.activation.layout for part in parts))
        addresses = [address(tensor) if tensor.numel() else None for tensor in self._kept]
        self.layout = LinearLayout(self.inputs, self.outputs, self.count, self._grids, *addresses,
                                    norm.eps if norm is not None else 0.0, int(gelu))

    @classmethod
    def of(cls, layer: nn.Module, norm: nn.LayerNorm | None = None, gelu: bool = False,
           kernels: Library | None = None) -> NativeLinear:
        """Return the native form of a :class:`FrozenLinear`, or of a :class:`SplitLinear` of such.

        Raises:
            ValueError: It is of another kind, has parts that the kernels do not know, or transforms its input.
        """
        members = list(layer.parts) if isinstance(layer, SplitLinear) else [layer]
        if not all(isinstance(member, FrozenLinear) and member.let is None for member in members):
            raise ValueError(f"{type(layer).__name__} is no frozen linear layer without a transformation of its input")
        return cls([LinearPart.of(member) for member in members], norm, gelu,  # type: ignore[arg-type]
                   kernels)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Map (..., in) to (..., parts * out); ``residual``, of that shape, is added."""
        x = float_rows(x)
        y = torch.empty(*x.shape[:-1], self.count * self.outputs)
        if residual is not None:
            residual = float_rows(residual)
            if residual.shape != y.shape:
                raise ValueError(f"a residual {tuple(residual.shape)} cannot be added to {tuple(y.shape)}")
        self._run(x, residual, y, None)
        return y

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """Return the integer sums (..., parts * out) of (code - c) (weight code - middle), c the code nearest zero."""
        x = float_rows(x)
        sums = torch.empty(*x.shape[:-1], self.count * self.outputs, dtype=torch.int32)
        self._run(x, None, None, sums)
        return sums

    def _run(self, x: torch.Tensor, residual: torch.Tensor | None, y: torch.Tensor | None,
             sums: torch.Tensor | None) -> None:
        if x.shape[-1] != self.inputs:
            raise ValueError(f"a linear layer with {self.inputs} inputs cannot take {tuple(x.shape)}")
        failed = self.kernels.linear(address(x), x.numel() // self.inputs, ctypes.byref(self.layout),
                                     address(residual), address(y), address(sums), torch.get_num_threads())
        if failed:
            raise MemoryError("native linear layer")


def _arranged(part: LinearPart) -> tuple[torch.Tensor, ...]:
    """Return weight, start, scale, row_scale and constant as linear.h wants them, the last three in float64."""
    outputs, inputs = part.codes.shape
    middle = 2 ** (part.bits - 1)
    centred = part.codes.to(torch.int16) - middle
    padded = functional.pad(centred, (0, -inputs % DEPTH, 0, -outputs % COLUMNS)).to(torch.int8)
    weight = padded.view(-1, COLUMNS, padded.shape[1] // DEPTH, DEPTH).transpose(1, 2).contiguous()
    zero, activation = part.activation.code_of_zero, part.activation
    start = -zero * padded.sum(1, dtype=torch.int32)
    step, first = part.step.detach().double(), part.first.detach().double()
    middle_value = first + step * middle
    row_sums = step * centred.sum(1, dtype=torch.int64) + inputs * middle_value
    constant = (activation.first + activation.step * zero) * row_sums
    if part.bias is not None:
        constant = constant + part.bias.detach().double()
    rows = (activation.step * step, activation.step * middle_value, constant)
    scale, row_scale, constant = (functional.pad(row.expand(outputs), (0, -outputs % COLUMNS)) for row in rows)
    return weight, start, scale, row_scale, constant
