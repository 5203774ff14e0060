"""The two products of attention, quantized, with smoothing factors."""

from __future__ import annotations

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.quant.let import Scale
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import TensorRecipe


class LetAttention(nn.Module):
    """softmax(Q(q s) Q(k / s)^T / sqrt(d)) = a, then Q(a t) Q(v / t), s per feature of a head, t per key token.

    Without quantization the result is plain attention for any s and t other than 0.

    Source: PassionSR specification 3.4.

    Args:
        head_width: Features of a head, d.
        recipe: Of all four operands; None quantizes nothing.
        key_tokens: Number of key tokens M, which turns t on and ties the module to inputs of just that many (released
            code). None leaves t out.
    """

    def __init__(self, head_width: int, recipe: TensorRecipe | None, key_tokens: int | None = None) -> None:
        super().__init__()
        self.scale_qk = Scale(head_width)
        self.scale_av = Scale(key_tokens) if key_tokens is not None else None
        self.query_quantizer, self.key_quantizer, self.map_quantizer, self.value_quantizer = (
            nn.Identity() if recipe is None else Quantizer(recipe) for _ in range(4))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Map (..., N, d), (..., M, d), (..., M, e) to (..., N, e).

        Raises:
            UserError: The number of key tokens is not that which the module was made for.
        """
        if self.scale_qk.watcher is not None:
            self.scale_qk.watcher(_maximum(key, -1), _maximum(query, -1))
        query = self.query_quantizer(query * self.scale_qk.value)
        key = self.key_quantizer(key / self.scale_qk.value)
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        if self.scale_av is not None:
            attention, value = self._smoothed(self.scale_av, attention, value)
        result: torch.Tensor = self.map_quantizer(attention) @ self.value_quantizer(value)
        return result

    def _smoothed(self, scale: Scale, attention: torch.Tensor,
                  value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a t and v / t."""
        tokens = scale.value.shape[0]
        if value.shape[-2] != tokens:
            raise UserError(f"attention smoothing was calibrated for {tokens} key tokens, the input has "
                            f"{value.shape[-2]}; feed tiles of the calibration size, or calibrate without it")
        if scale.watcher is not None:
            scale.watcher(_maximum(value, -2), _maximum(attention, -1))
        return attention * scale.value, value / scale.value[:, None]


def _maximum(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the largest absolute value per index of one axis."""
    return x.detach().abs().movedim(axis, 0).flatten(1).amax(1)
