"""Random quantized layers with inputs, of every kind that can be frozen, and what tests of native ones share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.layers.weighted import QuantWeighted
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare

GRIDS = ("float_offset", "int_zero_point", "symmetric_step")


@st.composite
def quantized(draw: st.DrawFn, kind: str | None = None) -> tuple[nn.Module, torch.Tensor]:
    """A calibrated network of one layer, in eval mode, and an input."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    convolution = draw(st.booleans()) if kind is None else kind == "conv2d"
    bits = st.integers(1, 8)
    grid = draw(st.sampled_from(GRIDS))
    recipe: dict[str, Any] = {
        "weight": {"bits": draw(bits), "grid": grid, "per": draw(st.sampled_from(["tensor", "channel"]))},
        "activation": {"bits": draw(bits), "grid": grid},
    }
    has_bias = draw(st.booleans())
    if has_bias and draw(st.booleans()):
        recipe["bias"] = {"bits": draw(bits), "grid": grid}
    shape = draw(st.sampled_from(["plain", "split", "let", "split and let"]))
    groups, channels = 1, draw(st.integers(2, 7))
    if convolution and shape == "plain" and draw(st.booleans()):
        groups, channels = 2, 6
    if "split" in shape:
        at = draw(st.sampled_from(["half", 1]))
        recipe["split_in"] = {"at": at, "activation_axis": 1 if convolution or at == "half" and draw(st.booleans())
                              else -1}
    if "let" in shape:
        recipe["let"] = {"alpha": 0.5, "padding": draw(st.sampled_from(["zero_after", "transformed_zero"]))}
    if convolution:
        side = draw(st.sampled_from([1, 3, 4]))
        layer: nn.Module = nn.Conv2d(channels, 4, side, draw(st.integers(1, 2)), draw(st.integers(0, 2)),
                                     draw(st.integers(1, 2)), groups, has_bias)
        x = torch.randn(draw(st.integers(1, 2)), channels, 7, 8) * 3 + draw(st.sampled_from([0.0, 2.0]))
    else:
        layer = nn.Linear(channels, 5, has_bias)
        x = torch.randn(2, draw(st.integers(2, 5)), channels) * 3 + draw(st.sampled_from([0.0, 2.0]))
    network = prepare(nn.Sequential(layer), QuantPlan.parse([{"0": recipe}])).eval()
    quantized_layer = network[0]
    assert isinstance(quantized_layer, QuantWeighted)
    if quantized_layer.let is not None:
        with torch.no_grad():
            quantized_layer.let.scale.value.uniform_(0.5, 2)
            quantized_layer.let.offset.normal_()
    calibrate(network, [x], allow_degenerate=True)
    for _, quantizer in named_quantizers(network):
        quantizer.set_bounds(quantizer.lower_bound, torch.maximum(quantizer.upper_bound, quantizer.lower_bound + 0.1))
    return network, x


def same_with_threads(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Whether one thread and three give the same."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(layer(x))
    finally:
        torch.set_num_threads(before)
    return torch.equal(*results)
