"""Signs and their surrogate gradients, against the released code and against formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from basicsr_quant.quant.binary.activations import SignActivation, StepActivation
from basicsr_quant.quant.binary.sign import sign
from basicsr_quant.quant.binary.slopes import ClippedSlope, ErrorDecaySlope, PolynomialSlope, Slope, set_progress

INFINITY = math.inf


def _slope(activation: torch.nn.Module, values: list[float]) -> list[float]:
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    activation(x).sum().backward()
    assert x.grad is not None
    return x.grad.tolist()


@pytest.mark.parametrize(("suffix", "dtype"), [("f32", torch.float32), ("f64", torch.float64)])
def test_released_activation(recorded, suffix: str, dtype: torch.dtype) -> None:
    tensors = recorded("binary_activation")
    x = tensors["x"].to(dtype, copy=True).requires_grad_()
    y = SignActivation(PolynomialSlope())(x)
    y.sum().backward()
    assert torch.equal(y, tensors[f"y_{suffix}"])
    torch.testing.assert_close(x.grad, tensors[f"dx_{suffix}"], rtol=0, atol=2e-7)


def test_zero_has_the_sign_that_the_option_gives() -> None:
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30])
    assert sign(x).tolist() == [-1, 0, 0, 1]
    assert sign(x, "plus_one").tolist() == [-1, 1, 1, 1]
    assert sign(x.bfloat16(), "plus_one").dtype == torch.bfloat16
    assert SignActivation(PolynomialSlope(), "plus_one")(x).tolist() == [-1, 1, 1, 1]
    assert _slope(SignActivation(PolynomialSlope(), "plus_one"), [0.0]) == [2]


def test_huge_and_infinite_values_have_no_gradient() -> None:
    values = [-INFINITY, -1e30, 1e30, INFINITY]
    for slope in (PolynomialSlope(), ClippedSlope(), ErrorDecaySlope()):
        activation = SignActivation(slope)
        assert _slope(activation, values) == [0, 0, 0, 0]
        assert activation(torch.tensor(values)).tolist() == [-1, -1, 1, 1]


@given(st.floats(-1.5, 1.5))
def test_polynomial_slope_is_the_derivative_of_the_quadratic(x: float) -> None:
    def quadratic(r: float) -> float:
        return max(-1.0, min(1.0, r * (2 - abs(r)))) if abs(r) < 1 else math.copysign(1, r)

    step = 1e-6
    expected = (quadratic(x + step) - quadratic(x - step)) / (2 * step)
    assert _slope(SignActivation(PolynomialSlope()), [x]) == pytest.approx([expected], abs=1e-5)


def test_straight_through_slopes() -> None:
    values = [-1.1, -1.0, 0.5, 1.0, 1.1]
    assert _slope(SignActivation(ClippedSlope()), values) == [0, 1, 1, 1, 0]
    assert _slope(SignActivation(Slope()), values) == [1] * 5


def test_dorefa_rounds_to_zero_and_one() -> None:
    x = torch.tensor([-1.0, 0.0, 0.5, 0.51, 1.0, 7.0])
    assert StepActivation()(x).tolist() == [0, 0, 0, 1, 1, 1]
    assert _slope(StepActivation(), [-0.1, 0.0, 0.5, 1.0, 1.1]) == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(("fraction", "temperature", "factor"), [(0.0, 0.1, 10.0), (0.5, 1.0, 1.0), (1.0, 10.0, 1.0)])
def test_error_decay_follows_the_training(fraction: float, temperature: float, factor: float) -> None:
    activation = SignActivation(ErrorDecaySlope())
    set_progress(activation, fraction)
    expected = [factor * temperature * (1 - math.tanh(temperature * x) ** 2) for x in (-0.7, 0.0, 0.2)]
    assert _slope(activation, [-0.7, 0.0, 0.2]) == pytest.approx(expected, rel=1e-6)
    assert activation.state_dict() == {}


def test_nothing_is_kept_when_no_gradient_is_wanted() -> None:
    x = torch.randn(5)
    for activation in (SignActivation(PolynomialSlope()), StepActivation()):
        assert activation(x).grad_fn is None
        with torch.no_grad():
            assert activation(x.clone().requires_grad_()).grad_fn is None
        assert torch.equal(activation(x), activation(x.clone().requires_grad_()))
