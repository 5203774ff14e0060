"""The grid of PassionSR against numbers recorded from its released code."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from basicsr_quant.quant.grids.int_zero_point import IntZeroPointGrid, round_half_away, step_and_zero_point
from basicsr_quant.quant.observers.base import Target
from basicsr_quant.quant.observers.ema_minmax import EmaMinMaxObserver


@pytest.fixture(scope="module")
def records(fixtures) -> dict[str, torch.Tensor]:
    return load_file(fixtures / "passionsr" / "lbq.safetensors")


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("kind", ["act", "act_wide", "w2d", "w4d", "act_init", "w4d_init"])
@pytest.mark.parametrize("mode", ["full", "detached"])
def test_forward_and_gradients(records, bits: int, kind: str, mode: str) -> None:
    record = {name.split(".", 2)[2]: value for name, value in records.items() if name.startswith(f"b{bits}.{kind}.")}
    x, lower, upper = (record[name].clone().requires_grad_() for name in ("x", "x_min", "x_max"))
    step, zero_point = step_and_zero_point(lower.detach(), upper.detach(), 2**bits - 1)
    torch.testing.assert_close(step, record["delta"], rtol=1e-6, atol=0)
    assert torch.equal(zero_point, record["zero_point"])
    output = IntZeroPointGrid(mode).fake_quantize(x, lower, upper, bits)
    width = float((record["x_max"] - record["x_min"]).max())
    torch.testing.assert_close(output, record["y"], rtol=0, atol=1e-6 * width)
    output.backward(record["grad_out"])
    torch.testing.assert_close(x.grad, record["grad_x"], rtol=0, atol=1e-6)
    prefix = "full_grad_" if mode == "full" and not kind.endswith("_init") else "grad_"
    for bound, name in ((lower, "x_min"), (upper, "x_max")):
        torch.testing.assert_close(bound.grad, record[prefix + name], rtol=1e-5, atol=1e-5)


def test_rounding(records) -> None:
    assert torch.equal(round_half_away(records["round.in"]), records["round.out"])


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_running_average_of_extremes(records, bits: int) -> None:
    observer = EmaMinMaxObserver(Target(bits, IntZeroPointGrid(), None), momentum=0.95)
    for name in ("x0", "x1", "x2"):
        observer.update(records[f"b{bits}.ema.{name}"], 0)
    lower, upper = observer.bounds()
    torch.testing.assert_close(lower.squeeze(), records[f"b{bits}.ema.x_min"].squeeze(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(upper.squeeze(), records[f"b{bits}.ema.x_max"].squeeze(), rtol=1e-6, atol=1e-6)


def test_unknown_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="full or detached"):
        IntZeroPointGrid("ful")
