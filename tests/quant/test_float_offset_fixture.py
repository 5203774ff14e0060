"""The grid of 2DQuant against numbers recorded from its released code."""

from __future__ import annotations

import pytest
import torch

from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid

CASES = ("inner", "minmax", "ties", "halves", "allbelow", "onesided", "crossed")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(published, bits: int, case: str) -> None:
    key = f"b{bits}.{case}."
    record = {name.removeprefix(key): value for name, value in published("fakequant").items() if name.startswith(key)}
    x, lower, upper = (record[name].clone().requires_grad_() for name in ("input", "lb", "ub"))
    output = FloatOffsetGrid().fake_quantize(x, lower, upper, bits)
    torch.testing.assert_close(output, record["output"], rtol=0, atol=1e-6)
    output.backward(record["grad_output"])
    torch.testing.assert_close(x.grad, record["grad_input"], rtol=0, atol=1e-6)
    torch.testing.assert_close(lower.grad, record["grad_lb"], rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(upper.grad, record["grad_ub"], rtol=1e-4, atol=5e-5)


def test_all_cases_of_the_fixture_are_tested(published) -> None:
    assert {name.split(".")[1] for name in published("fakequant")} == set(CASES)
