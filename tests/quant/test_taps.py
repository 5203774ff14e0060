"""Feature taps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.taps import FeatureTaps, match_modules


def test_outputs_in_the_order_asked_for(perceptron) -> None:
    x = torch.randn(2, 6)
    with FeatureTaps(perceptron, ["fc2", "fc1"]) as taps:
        output = perceptron(x)
        assert taps.take()[0] is output
        assert torch.equal(taps.take()[1], perceptron.fc1(x))
    assert not any(module._forward_hooks for module in perceptron.modules())


def test_hooks_are_gone_after_an_error(perceptron) -> None:
    with pytest.raises(RuntimeError), FeatureTaps(perceptron, ["fc1"]):
        perceptron(torch.randn(2, 5))
    assert not any(module._forward_hooks for module in perceptron.modules())


def test_modules_that_are_not_there_or_do_not_run(perceptron) -> None:
    with pytest.raises(UserError, match="feature tap 'fc3' names no module"):
        FeatureTaps(perceptron, ["fc3"])
    with FeatureTaps(perceptron, ["fc1", "fc2"]) as taps:
        perceptron.fc1(torch.randn(2, 6))
        with pytest.raises(UserError, match="feature tap 'fc2' is no part of the forward pass"):
            taps.take()


def test_patterns(perceptron) -> None:
    assert match_modules(perceptron, ["fc2", "fc*"]) == ["fc1", "fc2"]
    with pytest.raises(UserError, match="feature tap 'gc\\*' matches no module"):
        match_modules(perceptron, ["fc1", "gc*"])
    nested = nn.Sequential(perceptron)
    assert match_modules(nested, ["*.fc*"]) == ["0.fc1", "0.fc2"]
    assert match_modules(nested, ["*"]) == ["0"]
    with pytest.raises(UserError, match="within one level"):
        match_modules(nested, ["*.*.fc1"])
