"""Learning bounds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr_quant.quant.bounds import RelativeSteps, bound_parameters, order_keeper, range_scales
from basicsr_quant.quant.calibrate import calibrate


def test_only_bounds_learn(prepared_perceptron) -> None:
    model = prepared_perceptron()
    parameters = bound_parameters(model)
    assert len(parameters) == 8
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if name.endswith("_bound")}


def test_scales_are_the_widths(prepared_perceptron) -> None:
    model, x = prepared_perceptron(), torch.randn(8, 6)
    calibrate(model, [x])
    scales = range_scales(model)
    assert len(scales) == len(bound_parameters(model))
    position = [name for name, _ in model.named_parameters() if name.endswith("_bound")].index(
        "fc1.activation_quantizer.lower_bound")
    assert torch.equal(scales[position], (x.max() - x.min()).reshape(1))
    assert not any(scale.requires_grad for scale in scales)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_relative_steps_are_adam_on_reparametrised_values(dtype: torch.dtype) -> None:
    """p = scale * q: Adam on q against RelativeSteps on p; with a small epsilon, as gradients differ by the scale."""
    torch.manual_seed(0)
    scales = [torch.tensor([scale], dtype=dtype) for scale in (0.5, 14.0, 1.0)]
    start = [torch.randn(1, dtype=dtype) for _ in scales]
    ours = [nn.Parameter(value * scale) for value, scale in zip(start, scales, strict=True)]
    theirs = [nn.Parameter(value.clone()) for value in start]
    target = [torch.randn(1, dtype=dtype) for _ in scales]
    optimizers = [torch.optim.Adam(values, lr=1e-2, betas=(0.9, 0.99), eps=1e-14) for values in (ours, theirs)]
    RelativeSteps(optimizers[0], scales)
    for _ in range(30):
        rebuilt = [value * scale for value, scale in zip(theirs, scales, strict=True)]
        for values, optimizer in ((ours, optimizers[0]), (rebuilt, optimizers[1])):
            optimizer.zero_grad()
            sum((value - wanted).square().sum() for value, wanted in zip(values, target, strict=True)).backward()
            optimizer.step()
    tolerance = 1e-9 if dtype is torch.float64 else 2e-6
    for mine, other, scale in zip(ours, theirs, scales, strict=True):
        torch.testing.assert_close(mine / scale, other, rtol=0, atol=tolerance)


def test_order_is_kept(prepared_perceptron) -> None:
    model = prepared_perceptron()
    calibrate(model, [torch.randn(8, 6)])
    keep = order_keeper(model, 0.1)
    first, second = model.fc1.activation_quantizer, model.fc2.activation_quantizer
    width = (first.upper_bound - first.lower_bound).detach().clone()
    untouched = second.upper_bound.detach().clone()
    lower = first.lower_bound.detach().clone()
    first.set_bounds(lower, lower - 1)
    keep()
    assert torch.equal(first.lower_bound, lower)
    torch.testing.assert_close(first.upper_bound.detach(), lower + 0.1 * width)
    assert torch.equal(second.upper_bound, untouched)
    assert first.upper_bound.requires_grad
