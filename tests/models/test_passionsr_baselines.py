"""The baselines' plans on Stable Diffusion's networks, and MaxMin against its formula."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from passionsr_networks import example, narrow, prepared, run
from torch import nn

from basicsr_quant.models.passionsr_blocks import BLOCKS
from basicsr_quant.options.load import load_options
from basicsr_quant.options.methods.passionsr import PassionSROptions
from basicsr_quant.quant.adaround import install_learned_rounding
from basicsr_quant.quant.block_samples import blocks_in_order
from basicsr_quant.quant.calibrate import calibrate, named_quantizers
from basicsr_quant.quant.layers.weighted import weighted_layers
from basicsr_quant.quant.let import Scale
from basicsr_quant.quant.reconstruction import PHASES, Reconstruction
from basicsr_quant.quant.split_quantizer import SplitQuantizer
from basicsr_quant.registry import SELECTORS

FOLDER = Path(__file__).parents[2] / "options/train/PassionSR_baselines"


def calibrated(component: Any, method: str, bits: int = 6) -> nn.Module:
    """A network quantized by the plan of a baseline's option file."""
    options = load_options(FOLDER / f"train_{method}_tiny.yml")
    assert isinstance(options, PassionSROptions)
    quant = options.quant
    assert not quant.let.enabled and not quant.smooth.query_key
    rules = {key: {**rule, "candidates": 8} if isinstance(rule, dict) and rule["type"] == "dobi" else rule
             for key in ("weight_observer", "activation_observer", "product_observer")
             for rule in [getattr(quant, key)]}
    model = prepared(component, narrow(component), None, weight_bits=bits, activation_bits=bits, grid=quant.grid,
                     split=getattr(quant, component).split, **rules)
    calibrate(model, [example(component)], forward=lambda x: run(component, model, x), allow_degenerate=True)
    return model


def min_max(x: torch.Tensor, rows: bool, bits: int) -> torch.Tensor:
    """Asymmetric min-max quantization with an integer zero point, in float64."""
    flat = x.double().flatten(1) if rows else x.double().reshape(1, -1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    zero = (low / step).sign() * ((low / step).abs() + 0.5).floor()
    code = (flat / step).sign() * ((flat / step).abs() + 0.5).floor() - zero
    return ((code.clamp(0, 2**bits - 1) + zero) * step).reshape(x.shape)


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_maxmin_is_the_formula(component: Any) -> None:
    """All weights and all inputs, those of the first layers in full precision, come out as the formula has them."""
    model = calibrated(component, "MaxMin")
    assert not any(isinstance(module, Scale) for module in model.modules())
    for name, layer in weighted_layers(model):
        bits = layer.weight_quantizer.bits
        wanted = min_max(layer.weight.detach(), True, bits)
        step = (layer.weight_quantizer.upper_bound - layer.weight_quantizer.lower_bound) / (2**bits - 1)
        difference = ((layer.parts().weight - wanted).abs() / step).detach()
        assert (difference < 1e-3).double().mean() > 0.999, name  # float32 may round a tie the other way
        assert difference.max() < 1.001, name
    x = example(component)
    first = model.conv_in if component == "unet" else model.encoder.conv_in
    torch.testing.assert_close(first.activation_quantizer(x).double(), min_max(x, False, 6), rtol=0, atol=1e-5)
    bounds = first.activation_quantizer
    assert (bounds.lower_bound.item(), bounds.upper_bound.item()) == (x.min().item(), x.max().item())


@pytest.mark.parametrize("component", ["unet", "vae"])
@pytest.mark.parametrize("method", ["LSQ", "EfficientDM", "Q_Diffusion"])
def test_every_baseline_calibrates(component: Any, method: Any) -> None:
    model = calibrated(component, method)
    with torch.no_grad():
        assert torch.isfinite(run(component, model, example(component))).all()
    kinds = {quantizer.recipe.grid.type for _, quantizer in named_quantizers(model)}
    assert kinds == {"symmetric_step" if method == "LSQ" else "int_zero_point"}
    cut = [name for name, layer in weighted_layers(model) if isinstance(layer.weight_quantizer, SplitQuantizer)]
    joined = [name for name in cut if name.startswith("up_blocks") and name.endswith(("conv1", "conv_shortcut"))]
    assert cut == joined
    assert bool(cut) == (method == "Q_Diffusion" and component == "unet")
    if method == "LSQ":
        for name, quantizer in named_quantizers(model):
            if name.endswith(("weight_quantizer", "bias_quantizer")):
                assert (quantizer.lower_bound < 0).all()
            if name.endswith("map_quantizer"):
                assert (quantizer.lower_bound == 0).all()


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_blocks_of_stable_diffusion(component: Any) -> None:
    model = prepared(component, narrow(component))

    patterns = [pattern.removeprefix(f"{component}.") for part in BLOCKS for pattern in BLOCKS[part]
                if pattern.startswith(component)]
    blocks = blocks_in_order(model, example(component, batch=1), functools.partial(run, component), patterns)
    layers = [name for name, _ in weighted_layers(model)]
    for name in layers:
        assert sum(name == block or name.startswith(f"{block}.") for block in blocks) == 1
    kinds = {type(model.get_submodule(block)).__name__ for block in blocks}
    attention = "BasicTransformerBlock" if component == "unet" else "Attention"
    assert kinds == {"ResnetBlock2D", attention, "QuantConv2d"} | ({"QuantLinear"} if component == "unet" else set())
    first = {"unet": "time_embedding.linear_1", "vae": "encoder.conv_in"}[component]
    last = {"unet": "conv_out", "vae": "decoder.conv_out"}[component]
    assert (blocks[0], blocks[-1]) == (first, last)


def test_blocks_of_a_unet_learn() -> None:
    """Layers, resnets and transformer blocks, called as diffusers calls them."""
    teacher = narrow("unet")
    model = prepared("unet", copy.deepcopy(teacher), None, weight_bits=4, activation_bits=4, split="concat")
    images = list(example("unet", batch=2).split(1))

    forward = functools.partial(run, "unet")
    calibrate(model, [torch.cat(images)], forward=lambda x: forward(model, x))
    blocks = ["time_embedding.linear_1", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0.transformer_blocks.0",
              "up_blocks.3.resnets.0"]
    before = copy.deepcopy(model.state_dict())
    for what in PHASES:
        PHASES[what].prepare(model)
        for block in blocks if what == "rounding" else ():
            install_learned_rounding(model.get_submodule(block))
        selection = SELECTORS.get(what)(model, 0.01)
        optimizer = torch.optim.Adam(selection.parameters, lr=0.1 if what == "rounding" else 1e-3)
        learning = Reconstruction(model, teacher, [(image, image) for image in images], blocks, PHASES[what],
                                  forward=forward, iterations=2)
        for iteration in range(learning.length):
            sum(learning.loss(iteration, [0, 1]).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            learning.after_step(iteration)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    layers = {name.rpartition(".")[0] for name in changed if name.endswith("weight")}
    wanted = {name for name, _ in weighted_layers(model) if name.startswith(tuple(blocks))}
    assert layers == wanted
    attention = f"{blocks[2]}.attn1.processor"
    assert {f"{attention}.{part}_quantizer.upper_bound" for part in ("query", "key", "map", "value")} <= changed
    assert all(name.startswith(tuple(blocks)) for name in changed)
