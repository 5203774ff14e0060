"""Quantized attention in diffusers' modules: what is replaced, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.quant.calibrate import calibrate, named_quantizers, set_state
from basicsr_quant.quant.layers.attention import QuantAttention
from basicsr_quant.quant.layers.linear import QuantLinear
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.quantizer import State

OPERANDS = {name: {"bits": 8, "grid": "int_zero_point"} for name in ("query", "key", "map", "value")}
LAYERS = {"*": {"weight": {"bits": 8, "per": "channel"}, "activation": {"bits": 8}}}


class Holder(nn.Module):
    """An attention module inside another."""

    def __init__(self, **keywords: Any) -> None:
        pytest.importorskip("diffusers")
        load_torchvision()
        from diffusers.models.attention_processor import Attention

        super().__init__()
        torch.manual_seed(0)
        self.attn = Attention(query_dim=12, heads=3, dim_head=4, **keywords).requires_grad_(False)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.attn(x, encoder_hidden_states=context)


def plan(*lines: dict) -> QuantPlan:
    return QuantPlan.parse(lines)


@pytest.mark.parametrize(("keywords", "shape"), [
    ({}, (2, 5, 12)),
    ({"cross_attention_dim": 7, "bias": True}, (2, 5, 12)),
    ({"norm_num_groups": 3, "residual_connection": True, "rescale_output_factor": 2.0, "bias": True}, (2, 12, 3, 4)),
])
def test_products_are_those_of_the_module(keywords: dict, shape: tuple[int, ...]) -> None:
    model, x = Holder(**keywords), torch.randn(shape)
    context = torch.randn(2, 6, 7) if "cross_attention_dim" in keywords else None
    expected = model(x, context)
    prepare(model, plan({"op:attention *": {**OPERANDS, "smooth": {}}}, LAYERS))
    assert isinstance(model.attn.processor, QuantAttention) and isinstance(model.attn.to_out[0], QuantLinear)
    set_state(model, State.OFF)
    torch.testing.assert_close(model(x, context), expected, rtol=0, atol=1e-6)
    calibrate(model, [x], forward=lambda batch: model(batch, context))
    found = model(x, context)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.05
    assert sum(name.startswith("attn.processor.") for name, _ in named_quantizers(model)) == 4


def test_operands_left_out_stay_as_they_are() -> None:
    model = prepare(Holder(), plan({"op:attention *": {"map": OPERANDS["map"]}}))
    assert [name for name, _ in named_quantizers(model)] == ["attn.processor.map_quantizer"]
    assert type(model.attn.to_q) is nn.Linear
    assert not any("scale" in name for name in model.state_dict())


def test_refusals() -> None:
    line = {"op:attention *": OPERANDS}
    with pytest.raises(UserError, match="'attn': this attention has norm_q, which is not supported"):
        prepare(Holder(qk_norm="layer_norm"), plan(line))
    with pytest.raises(UserError, match="'attn': this attention has unusual logits"):
        prepare(Holder(scale_qk=False), plan(line))
    with pytest.raises(UserError, match="'attn.processor' is quantized already"):
        prepare(prepare(Holder(), plan(line)), plan(line))
    with pytest.raises(UserError, match="plan line 2 \\('op:attention \\*.attn3'\\) matches nothing"):
        prepare(Holder(), plan(line, {"op:attention *.attn3": OPERANDS}))
    with pytest.raises(UserError, match="matches nothing"):
        prepare(nn.Sequential(nn.Linear(3, 3)), plan(line))
    twin = Holder()
    twin.again = twin.attn
    with pytest.raises(UserError, match="'attn' is shared"):
        prepare(twin, plan(line))
    model = prepare(Holder(), plan(line))
    with pytest.raises(UserError, match="takes no mask"):
        model.attn(torch.randn(1, 5, 12), attention_mask=torch.zeros(1, 5))
