"""Sums of codes are those of integers, for every kind of product."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from basicsr_quant.quant import exact
from basicsr_quant.quant.exact import Coded
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import TensorRecipe

ONE, ZERO = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def whole(*shape: int, bits: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape)


def coded(codes: torch.Tensor) -> Coded:
    return Coded(codes.double(), ONE, ZERO)


@pytest.mark.parametrize("bits", range(1, 9))
def test_sums_equal_those_of_integers(bits: int) -> None:
    torch.manual_seed(bits)
    x, weight = whole(2, 3, 37, bits=bits), whole(5, 37, bits=bits)
    assert torch.equal(exact.linear(coded(x), coded(weight)), (x @ weight.t()).double())
    left, right = whole(2, 3, 9, 11, bits=bits), whole(2, 3, 11, 4, bits=bits)
    assert torch.equal(exact.matmul(coded(left), coded(right)), (left @ right).double())
    image, kernel = whole(2, 6, 5, 7, bits=bits), whole(4, 3, 3, 2, bits=bits)
    wanted = torch.zeros(2, 4, 4, 8, dtype=torch.int64)
    padded = functional.pad(image, (1, 1, 1, 1))
    for output in range(4):
        for row in range(4):
            for column in range(8):
                channels = slice(3 * (output // 2), 3 * (output // 2) + 3)
                if row * 2 + 3 <= padded.shape[2] and column + 2 <= padded.shape[3]:
                    patch = padded[:, channels, row * 2:row * 2 + 3, column:column + 2]
                    wanted[:, output, row, column] = (patch * kernel[output]).sum((1, 2, 3))
    found = exact.conv2d(coded(image), coded(kernel), (2, 1), (1, 1), (1, 1), 2)
    assert torch.equal(found, wanted[:, :, :found.shape[2], :found.shape[3]].double())


@pytest.mark.parametrize("grid", ["float_offset", "int_zero_point", "symmetric_step"])
def test_product_of_operands_is_that_of_their_values(grid: str) -> None:
    torch.manual_seed(0)
    operands = []
    for shape in ((2, 5, 8), (2, 8, 6)):
        quantizer = Quantizer(TensorRecipe.parse({"bits": 4, "grid": grid}, "here"))
        quantizer.set_bounds(torch.tensor(-0.7), torch.tensor(1.3))
        x = torch.randn(shape)
        operands.append((quantizer(x).detach().double(), exact.coded(quantizer, quantizer.encode(x), 2)))
    wanted = operands[0][0] @ operands[1][0]
    found = exact.matmul(operands[0][1], operands[1][1])
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
