"""Exact products of codes: integer sums in float64, then an affine correction.

Codes of at most 8 bits, their products and sums of up to 2^37 of these are exact in float64, in any order, on any
device. Only the correction is rounded: a few float64 operations, and once to the dtype of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.backends import cudnn
from torch.nn import functional

from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.split_quantizer import SplitQuantizer


class Coded(NamedTuple):
    """A rounded tensor, first + step * codes.

    Attributes:
        codes: float64, whole numbers.
        step: float64, broadcasts against ``codes``.
        first: As ``step``; the value of code 0.
        cuts: Channels at which step and first change, if the tensor is cut along its channels.
    """

    codes: torch.Tensor
    step: torch.Tensor
    first: torch.Tensor
    cuts: tuple[int, ...] = ()

    @property
    def values(self) -> torch.Tensor:
        """The rounded tensor in float64."""
        return self.first + self.step * self.codes

    def part(self, axis: int, begin: int, end: int) -> Coded:
        """Return channels ``begin`` to ``end``, between which nothing changes."""
        step, first = (number.narrow(axis, begin, 1) if self.cuts else number for number in (self.step, self.first))
        return Coded(self.codes.narrow(axis, begin, end - begin), step, first)


def coded(quantizer: Quantizer | SplitQuantizer, codes: torch.Tensor, channels: int) -> Coded:
    """Return codes with their steps and first values.

    Args:
        quantizer: Of the tensor, in one piece or two.
        codes: uint8, of the whole tensor.
        channels: Axis of the (input) channels, counted from 0.
    """
    if isinstance(quantizer, Quantizer):
        return Coded(codes.double(), *affine(quantizer))
    parts = list(zip(quantizer.quantizers(), quantizer.cut(codes), strict=True))
    axis = quantizer.axis % codes.dim()
    numbers = [[number.view(-1, *[1] * (codes.dim() - 1)) for number in affine(part)] for part, _ in parts]

    def spread(which: int) -> torch.Tensor:
        sizes = [[-1] * axis + [piece.shape[axis]] + [-1] * (codes.dim() - axis - 1) for _, piece in parts]
        return torch.cat([number[which].expand(size) for number, size in zip(numbers, sizes, strict=True)], axis)

    return Coded(codes.double(), spread(0), spread(1), (parts[0][1].shape[axis],) if axis == channels else ())


def affine(quantizer: Quantizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return step and first value, float64, without gradient."""
    step, first = quantizer.grid.affine(quantizer.lower_bound.detach(), quantizer.upper_bound.detach(), quantizer.bits)
    return step, first


def encode(quantizer: Quantizer | SplitQuantizer, tensor: torch.Tensor) -> torch.Tensor:
    """Return the codes (uint8) of a tensor in one piece or two."""
    if isinstance(quantizer, Quantizer):
        return quantizer.encode(tensor)
    parts = zip(quantizer.quantizers(), quantizer.cut(tensor), strict=True)
    return torch.cat([part.encode(piece) for part, piece in parts], quantizer.axis)


def decode(quantizer: Quantizer | SplitQuantizer, codes: torch.Tensor) -> torch.Tensor:
    """Return the values that codes stand for, as a simulation in the dtype of the bounds has them."""
    if isinstance(quantizer, Quantizer):
        return quantizer.decode(codes).to(quantizer.lower_bound.dtype)
    parts = zip(quantizer.quantizers(), quantizer.cut(codes), strict=True)
    return torch.cat([decode(part, piece) for part, piece in parts], quantizer.axis)


def linear(x: Coded, weight: Coded) -> torch.Tensor:
    """Return x W^T, float64 (..., O).

    Args:
        x: (..., K); step and first may differ along any axis.
        weight: (O, K).
    """
    total: torch.Tensor | None = None
    for begin, end in _segments(x, weight, -1):
        a, w = x.part(-1, begin, end), weight.part(1, begin, end)
        step, first = w.step.view(-1), w.first.view(-1)
        sums = a.codes @ w.codes.t()
        y = a.step * (step * sums + first * a.codes.sum(-1, keepdim=True))
        y = y + a.first * (step * w.codes.sum(1) + first * (end - begin))
        total = y if total is None else total + y
    assert total is not None
    return total


def conv2d(x: Coded, weight: Coded, stride: Sequence[int], padding: str | Sequence[int], dilation: Sequence[int],
           groups: int) -> torch.Tensor:
    """Return the convolution, padded with zeros (not with code 0), float64 (B, O, H', W').

    Args:
        x: (B, C, H, W).
        weight: (O, C / groups, kh, kw).
        stride: As in torch, and so are the other arguments.
        padding: Border of zeros.
        dilation: Distance of taps.
        groups: Of channels; 1 if the tensors are cut along their channels.
    """
    def run(values: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        with cudnn.flags(enabled=False):  # its transforms are not exact
            return functional.conv2d(values, kernel, None, stride, padding, dilation, groups)

    total: torch.Tensor | None = None
    for begin, end in _segments(x, weight, 1):
        a = x.part(1, begin, end)
        w = weight.part(1, begin, end) if groups == 1 else weight
        step, first = w.step.view(-1, 1, 1), w.first.view(-1, 1, 1)
        y = a.step * (step * run(a.codes, w.codes) + first * run(a.codes, torch.ones_like(w.codes)))
        y = y + a.first * run(torch.ones_like(a.codes[:1]), w.values)
        total = y if total is None else total + y
    assert total is not None
    return total


def matmul(left: Coded, right: Coded) -> torch.Tensor:
    """Return the product (..., N, K) (..., K, M), float64; step and first are single numbers."""
    sums = left.codes @ right.codes
    y = left.step * (right.step * sums + right.first * left.codes.sum(-1, keepdim=True))
    inner = left.codes.shape[-1]
    return y + left.first * (right.step * right.codes.sum(-2, keepdim=True) + right.first * inner)


def _segments(x: Coded, weight: Coded, axis: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches of input channels in which no step changes."""
    channels = x.codes.shape[axis]
    places = sorted({0, channels, *x.cuts, *weight.cuts})
    yield from zip(places[:-1], places[1:], strict=True)
