"""Pixel losses against float64 formulas and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from basicsr_quant.errors import UserError
from basicsr_quant.losses.pixel import CharbonnierLoss, L1Loss, MSELoss
from basicsr_quant.registry import LOSSES

KINDS: list[tuple[Any, Any]] = [
    (L1Loss, torch.abs),
    (MSELoss, torch.square),
    (CharbonnierLoss, lambda difference: torch.sqrt(difference**2 + 1e-12)),
]


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, 3, 5, 7, generator=generator, dtype=torch.float64),
            torch.rand(2, 3, 5, 7, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "formula"), KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value(kind: Any, formula: Any, reduction: Any) -> None:
    prediction, target = images()
    expected = 0.25 * getattr(formula(prediction - target), reduction)()
    result = kind(loss_weight=0.25, reduction=reduction)(prediction, target)
    assert result.shape == ()
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("kind", "formula"), KINDS)
def test_gradient(kind: Any, formula: Any) -> None:
    prediction, target = images()
    assert torch.autograd.gradcheck(lambda value: kind(2.0)(value, target), prediction.requires_grad_())


@pytest.mark.parametrize(("kind", "formula"), KINDS)
@given(seed=st.integers(0, 2**31), weight=st.floats(0.01, 100))
def test_symmetric_and_linear_in_the_weight(kind: Any, formula: Any, seed: int, weight: float) -> None:
    prediction, target = images(seed)
    value = kind()(prediction, target)
    torch.testing.assert_close(kind()(target, prediction), value)
    torch.testing.assert_close(kind(loss_weight=weight)(prediction, target), weight * value)


def test_equal_images() -> None:
    image, _ = images()
    assert L1Loss()(image, image) == 0 and MSELoss()(image, image) == 0
    assert CharbonnierLoss(eps=1e-6)(image, image).item() == pytest.approx(1e-3)


@pytest.mark.parametrize(("kind", "formula"), KINDS)
def test_bad_arguments(kind: Any, formula: Any) -> None:
    with pytest.raises(UserError, match="reduction 'none'"):
        kind(reduction="none")
    with pytest.raises(ValueError, match="differ in shape"):
        kind()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))


def test_eps_must_be_positive() -> None:
    with pytest.raises(UserError, match="eps 0"):
        CharbonnierLoss(eps=0)


def test_registered() -> None:
    for kind in (L1Loss, MSELoss, CharbonnierLoss):
        assert isinstance(LOSSES.build(kind.__name__, loss_weight=2.0, reduction="mean"), kind)
