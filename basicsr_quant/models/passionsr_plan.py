"""What PassionSR quantizes in OSEDiff's UNet and VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from basicsr_quant.archs.osediff import concat_splits
from basicsr_quant.archs.published.passionsr import KEPT_8BIT, Component
from basicsr_quant.quant.layers.attention import QuantAttention, is_attention
from basicsr_quant.quant.layers.linear import QuantLinear
from basicsr_quant.quant.layers.weighted import QuantWeighted, weighted_layers
from basicsr_quant.quant.quantizer import Quantizer

KEPT_BITS = 8
Split = Literal["half", "concat", "none"]
ObserverSpec = str | Mapping[str, Any]
GridSpec = str | Mapping[str, Any]


def default_plan(component: Component, network: nn.Module, *, weight_bits: int = 8, activation_bits: int = 8,
                 split: Split = "none", let: Mapping[str, Any] | None = None, products: bool = True,
                 smooth: Mapping[str, Any] | None = None, key_tokens: Mapping[str, int] | None = None,
                 zero_point_gradient: Literal["full", "detached"] = "full", grid: GridSpec | None = None,
                 weight_observer: ObserverSpec = "minmax",
                 activation_observer: ObserverSpec = "minmax",
                 product_observer: ObserverSpec | None = None) -> list[dict[str, Any]]:
    """Return the lines for every Conv2d and Linear of a network, and, in the UNet, both products of every attention.

    Released code: UNet ``split="half"``, VAE ``split="none"``; ``let`` with ``offset_sign: plus`` and
    ``vector_maximum: tensor``; ``smooth={}`` with :func:`key_tokens_of`; ``zero_point_gradient="detached"``;
    observers ``{type: ema_minmax, momentum: 1}``, for products 0.95, and calibration in one pass.

    Args:
        component: Which network.
        network: The plain network, of any width.
        weight_bits: Of weights and biases, but for the layers that are kept at 8 bits.
        activation_bits: Of inputs, but for the inputs of these layers, and of the operands of products.
        split: ``half`` cuts weights at the middle of their input channels and inputs at the middle of axis 1, in all
            layers. ``concat`` cuts only the layers that read features joined with a shortcut, where they are joined.
        let: Options of the equivalent transformation; None for none.
        products: Quantize the products of the UNet's attentions. Those of the VAE are never quantized.
        smooth: Options of the smoothing of the products' operands; None for none.
        key_tokens: Pattern of attention names -> number of key tokens, for a factor per key token.
        zero_point_gradient: Of the grid ``int_zero_point``.
        grid: In place of it, everywhere.
        weight_observer: Of weights and biases.
        activation_observer: Of inputs.
        product_observer: Of the operands of products; None for that of inputs.

    Source: PassionSR specification 3.
    """
    grid = grid or default_grid(zero_point_gradient)
    half = {"split_in": {"at": "half", "activation_axis": 1}} if split == "half" else {}

    def layer(weights: int, activations: int) -> dict[str, Any]:
        recipe = {"weight": {"bits": weights, "per": "channel", "grid": grid, "observer": weight_observer},
                  "activation": {"bits": activations, "grid": grid, "observer": activation_observer},
                  "bias": {"bits": weights, "grid": grid, "observer": weight_observer}, **half}
        return recipe if let is None else {**recipe, "let": dict(let)}

    lines: list[dict[str, Any]] = [{name: layer(KEPT_BITS, KEPT_BITS)} for name in KEPT_8BIT[component]]
    if component == "unet" and split == "concat":
        cut = {"split_in": {"at": "concat", "activation_axis": 1}}
        lines += [{pattern: {**layer(weight_bits, activation_bits), **cut}} for pattern in _joined_layers(network)]
    if component == "unet" and products:
        operand = {"bits": activation_bits, "grid": grid, "observer": product_observer or activation_observer}
        operands: dict[str, Any] = {name: operand for name in ("query", "key", "map", "value")}
        if smooth is not None:
            lines += [{f"op:attention {pattern}": {**operands, "smooth": {**smooth, "key_tokens": tokens}}}
                      for pattern, tokens in (key_tokens or {}).items()]
            operands["smooth"] = dict(smooth)
        if smooth is None or not key_tokens:
            lines.append({"op:attention *": operands})
    return [*lines, {"*": layer(weight_bits, activation_bits)}]


def default_grid(zero_point_gradient: Literal["full", "detached"]) -> dict[str, Any]:
    """Return the grid of the learnable boundary quantizer, as a plan line names it."""
    return {"type": "int_zero_point", "zero_point_gradient": zero_point_gradient}


def _joined_layers(unet: nn.Module) -> list[str]:
    """Return patterns of the layers that read features joined with a shortcut."""
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in concat_splits(unet))
    return [f"up_blocks.*.resnets.*.{kind}" for kind in kinds]


def key_tokens_of(unet: Any, latent_size: Sequence[int] = (64, 64), text_tokens: int = 77) -> dict[str, int]:
    """Return the number of key tokens of all attentions of a UNet: pattern of names -> number.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        latent_size: Height and width of the latent tiles that the network will see, and no others.
        text_tokens: Tokens of the prompt embedding.
    """
    deepest = len(unet.down_blocks) - 1
    levels = {f"down_blocks.{number}": number for number in range(deepest + 1)}
    levels |= {"mid_block": deepest, **{f"up_blocks.{number}": deepest - number for number in range(deepest + 1)}}
    found = {}
    for block, level in levels.items():
        if any(is_attention(module) for module in unet.get_submodule(block).modules()):
            found[f"{block}.*.attn1"] = (latent_size[0] >> level) * (latent_size[1] >> level)
            found[f"{block}.*.attn2"] = text_tokens
    return found


def layer_rows(component: Component, network: nn.Module) -> list[dict[str, Any]]:
    """Return a row for each quantized layer and each quantized operand of a product.

    Args:
        component: Shown in the rows.
        network: Prepared network, best on the meta device.
    """
    rows = [_layer_row(component, name, layer) for name, layer in weighted_layers(network)]
    for name, module in network.named_modules():
        if isinstance(module, QuantAttention):
            rows += [_row(component, f"{name}.{operand}", "Operand", activation_bits=quantizer.bits)
                     for operand, quantizer in module.named_children() if isinstance(quantizer, Quantizer)]
    return rows


def _layer_row(component: Component, name: str, layer: QuantWeighted) -> dict[str, Any]:
    bits = [None if quantizer is None else quantizer.bits
            for quantizer in (layer.weight_quantizer, layer.activation_quantizer, layer.bias_quantizer)]
    kind = "Linear" if isinstance(layer, QuantLinear) else "Conv2d"
    return _row(component, name, kind, tuple(layer.weight.shape), *bits)


def _row(component: Component, name: str, kind: str, weight_shape: tuple[int, ...] | None = None,
         weight_bits: int | None = None, activation_bits: int | None = None,
         bias_bits: int | None = None) -> dict[str, Any]:
    return {"component": component, "name": name, "type": kind, "weight_shape": weight_shape,
            "weight_bits": weight_bits, "activation_bits": activation_bits, "bias_bits": bias_bits}
