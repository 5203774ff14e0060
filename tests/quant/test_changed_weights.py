"""What learning changed of weights, saved and put into a fresh network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from basicsr_quant.quant.adaround import install_learned_rounding
from basicsr_quant.quant.calibrate import calibrate
from basicsr_quant.quant.changed_weights import changed_weights, install_changes
from basicsr_quant.quant.layers.weighted import merge_weights, weighted_layers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantization_aware_lora import install_low_rank_changes


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)).eval()
    tensor = {"bits": 3, "grid": "int_zero_point"}
    prepare(model, QuantPlan.parse([{"*": {"weight": tensor, "activation": tensor}}]))
    calibrate(model, [torch.randn(8, 5)])
    return model


def learned() -> nn.Module:
    """First layer merged, second with soft rounding, third with a low-rank change."""
    model = network()
    install_low_rank_changes(model, 2, where=("[02]",))
    install_learned_rounding(model, ("1",))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "parametrization" in name:
                value.normal_()
    model[0].merge_weight()
    return model


def test_they_come_back() -> None:
    model, fresh, x = learned(), network(), torch.randn(4, 5)
    assert list(changed_weights(model)) == ["0.weight"]
    state = {name: value for name, value in model.state_dict().items() if "weight" not in name.split(".")[1:]}
    state |= changed_weights(model)
    install_changes(fresh, state)
    assert list(changed_weights(fresh)) == ["0.weight"]
    fresh.load_state_dict(state, strict=False)
    assert torch.equal(fresh(x), model(x))
    for each in (model, fresh):
        merge_weights(each)
    assert torch.equal(fresh(x), model(x))


def test_what_fits_stays_and_what_is_not_saved_goes() -> None:
    model, other = learned(), learned()
    state = other.state_dict()
    before = [layer.parametrization for _, layer in weighted_layers(model)]
    install_changes(model, {name: value for name, value in state.items() if not name.startswith("1.param")})
    after = [layer.parametrization for _, layer in weighted_layers(model)]
    assert after[2] is before[2] is not None and after[1] is None


def test_what_cannot_be() -> None:
    model = network()
    with pytest.raises(ValueError, match="'1' cannot have sideways learned of its weight"):
        install_changes(model, {"1.parametrization.sideways": torch.zeros(1)})
    with pytest.raises(ValueError, match="does not fit a layer"):
        install_changes(copy.deepcopy(model), {"1.weight": torch.zeros(2, 2)})
