"""The two products of attention, quantized, inside diffusers' attention modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.let import Scale, largest
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import Recipe, TensorRecipe

_UNKNOWN_PARTS = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")


class QuantAttention(nn.Module):
    """softmax(Q(q s) Q(k / s)^T / sqrt(d)) = a, then Q(a t) Q(v / t), s per feature of a head, t per key token.

    Without quantization the result is plain attention for any s and t other than 0. It serves as the ``processor`` of a
    diffusers ``Attention``, whose projections stay layers of their own.

    Source: PassionSR specification 3.4.

    Args:
        head_width: Features of a head, d.
        recipe: ``query``, ``key``, ``map``, ``value`` (None leaves an operand alone), and ``smooth``, None for s = 1;
            t is 1 unless ``smooth:key_tokens`` says how many there are.
    """

    products = (("query_quantizer", "key_quantizer"), ("map_quantizer", "value_quantizer"))

    def __init__(self, head_width: int, recipe: Recipe) -> None:
        super().__init__()
        smooth = recipe.smooth
        self.scale_qk = Scale(head_width, smooth.alpha) if smooth else None
        self.scale_av = Scale(smooth.key_tokens, smooth.alpha) if smooth and smooth.key_tokens else None
        self.query_quantizer, self.key_quantizer, self.map_quantizer, self.value_quantizer = map(
            _quantizer, (recipe.query, recipe.key, recipe.map, recipe.value))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Map (..., N, d), (..., M, d), (..., M, e) to (..., N, e).

        Raises:
            UserError: The number of key tokens is not that which the recipe names.
        """
        if self.scale_qk is not None:
            if self.scale_qk.watcher is not None:
                self.scale_qk.watcher(largest(key, -1), largest(query, -1))
            query, key = query * self.scale_qk.value, key / self.scale_qk.value
        logits = self.query_quantizer(query) @ self.key_quantizer(key).transpose(-1, -2)
        attention = (logits * query.shape[-1] ** -0.5).softmax(-1)
        if self.scale_av is not None:
            attention, value = _smoothed(self.scale_av, attention, value)
        result: torch.Tensor = self.map_quantizer(attention) @ self.value_quantizer(value)
        return result

    def forward(self, attention: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None,
                attention_mask: torch.Tensor | None = None, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Do what diffusers' default processor does, with quantized products.

        Args:
            attention: The module whose processor this is.
            hidden_states: (B, N, C), or (B, C, H, W).
            encoder_hidden_states: (B, M, D) for cross attention.
            attention_mask: Must be None.
            temb: Not used.

        Raises:
            UserError: There is a mask.
        """
        if attention_mask is not None:
            raise UserError("quantized attention takes no mask; leave it out of the plan by 'none'")
        tokens = hidden_states.flatten(2).transpose(1, 2) if hidden_states.dim() == 4 else hidden_states
        if attention.group_norm is not None:
            tokens = attention.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        context = tokens if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (project(source).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for project, source
                             in ((attention.to_q, tokens), (attention.to_k, context), (attention.to_v, context)))
        result: torch.Tensor = self.attend(query, key, value).transpose(1, 2).flatten(2)
        for layer in attention.to_out:
            result = layer(result)
        if hidden_states.dim() == 4:
            result = result.transpose(1, 2).reshape(hidden_states.shape)
        if attention.residual_connection:
            result = result + hidden_states
        result = result / attention.rescale_output_factor
        return result


def is_attention(module: nn.Module) -> bool:
    """Whether a module is an ``Attention`` of diffusers, whose processor can be replaced."""
    return callable(getattr(module, "set_processor", None)) and all(
        isinstance(getattr(module, name, None), nn.Module) for name in ("to_q", "to_k", "to_v", "to_out"))


def quantize_attention(module: Any, recipe: Recipe) -> None:
    """Replace the processor of a diffusers ``Attention``.

    Raises:
        UserError: The module normalizes its operands, scales products in an unusual way, or adds projections.
    """
    head_width = module.inner_dim // module.heads
    unknown = [name for name in _UNKNOWN_PARTS if getattr(module, name, None) is not None]
    if unknown or abs(module.scale * head_width**0.5 - 1) > 1e-6 or module.is_causal:
        raise UserError(f"this attention has {unknown[0] if unknown else 'unusual logits'}, which is not supported; "
                        "leave it out by 'none'")
    weight = module.to_q.weight
    processor = QuantAttention(head_width, recipe).to(weight.device, weight.dtype)
    module.set_processor(processor.train(module.training))


def _quantizer(recipe: TensorRecipe | None) -> nn.Module:
    return nn.Identity() if recipe is None else Quantizer(recipe)


def _smoothed(scale: Scale, attention: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a t and v / t."""
    tokens = scale.value.shape[0]
    if value.shape[-2] != tokens:
        raise UserError(f"attention smoothing was calibrated for {tokens} key tokens, the input has "
                        f"{value.shape[-2]}; feed tiles of the calibration size, or calibrate without it")
    if scale.watcher is not None:
        scale.watcher(largest(value, -2), largest(attention, -1))
    return attention * scale.value, value / scale.value[:, None]
