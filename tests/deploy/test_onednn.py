from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from layer_strategies import quantized
from torch import nn

from basicsr_quant.deploy.freeze import freeze
from basicsr_quant.deploy.runtimes import onednn
from basicsr_quant.deploy.runtimes.base import runtime
from basicsr_quant.deploy.runtimes.onednn import OneDnn
from basicsr_quant.deploy.runtimes.simulate import Simulate
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

here = pytest.mark.skipif(OneDnn().missing() is not None, reason="no 8-bit products of oneDNN on this machine")


@here
@given(quantized())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_layers_agree_with_the_simulation(made: tuple[nn.Module, torch.Tensor]) -> None:
    network, x = made
    frozen = freeze(network)
    wanted = frozen(x)
    quantizer = frozen[0].activation_quantizer  # type: ignore[index]
    found = OneDnn().attach(frozen)(x)
    size = wanted.abs().max().clamp_min(0.1)
    assert found.shape == wanted.shape and quantizer is not None
    assert (found - wanted).abs().max() <= 2e-5 * size


@here
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_wide_layers(bits: int) -> None:
    torch.manual_seed(1)
    plan = QuantPlan.parse([{"?": {"weight": {"bits": bits, "per": "channel"}, "activation": {"bits": bits}}}])
    for layer, x in ((nn.Linear(180, 60), torch.randn(2, 40, 180)), (nn.Conv2d(32, 16, 3, padding=1),
                                                                    torch.randn(1, 32, 9, 10))):
        network = prepare(nn.Sequential(layer), plan).eval()
        calibrate(network, [x])
        frozen = freeze(network)
        wanted = frozen(x)
        found = OneDnn().attach(frozen)
        assert type(found[0]).__name__.startswith("OneDnn")  # type: ignore[index]
        for size in (x, x[:, :, :7], x):
            if size.dim() == 4:
                found(size)
        assert (found(x) - wanted).abs().max() <= 3e-6 * wanted.abs().max()


def test_what_does_not_run_here_is_simulated(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(onednn, "_exact", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert isinstance(runtime("onednn"), Simulate)
    assert "backend 'onednn' does not run here" in caplog.text
