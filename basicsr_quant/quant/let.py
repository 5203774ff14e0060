"""Learnable equivalent transformation (LET): range moved from a layer's input to its weight, its output unchanged.

Source: PassionSR, section "learnable equivalent transformation"; specification 3.3, 3.4, 4.4, 4.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.errors import UserError
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.recipe import TensorRecipe

Padding = Literal["zero_after", "transformed_zero"]
OffsetSign = Literal["minus", "plus"]
VectorMaximum = Literal["channel", "tensor"]


@dataclass(frozen=True)
class Split:
    """Cut a layer's input and its weight in two, each part with bounds of its own.

    Attributes:
        at: Input channel where the second part begins; None cuts every tensor in the middle of its axis (rounded down).
        activation_axis: Axis of the input that is cut; the weight's is always that of the input channels. The released
            code has 1 everywhere, so it cuts token tensors (B, N, C) between tokens.
    """

    at: int | None = None
    activation_axis: Literal[1, -1] = 1


@dataclass(frozen=True)
class LetRecipe:
    """How the tensors of a LET layer are quantized; None leaves a tensor alone."""

    weight: TensorRecipe | None = None
    activation: TensorRecipe | None = None
    bias: TensorRecipe | None = None
    split: Split | None = None


class SplitQuantizer(nn.Module):
    """Two quantizers for the two parts of a tensor along one axis.

    Args:
        recipe: Of each part.
        axis: Axis that is cut.
        at: Where the second part begins; None for the middle, rounded down.
        channels: As in ``Quantizer``.
        dimensions: As in ``Quantizer``.
    """

    def __init__(self, recipe: TensorRecipe, axis: int, at: int | None, channels: int = 1, dimensions: int = 1) -> None:
        super().__init__()
        self.axis, self.at = axis, at
        self.parts = nn.ModuleList(Quantizer(recipe, channels, dimensions) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` with each part as its quantizer leaves it."""
        size = x.shape[self.axis]
        first = size // 2 if self.at is None else self.at
        pieces = x.narrow(self.axis, 0, first), x.narrow(self.axis, first, size - first)
        return torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], self.axis)


def _quantizer(recipe: TensorRecipe | None, split: Split | None, axis: int, channels: int = 1,
               dimensions: int = 1) -> nn.Module:
    if recipe is None:
        return nn.Identity()
    if split is None:
        return Quantizer(recipe, channels, dimensions)
    return SplitQuantizer(recipe, axis, split.at, channels, dimensions)


class Scale(nn.Module):
    """A learnable factor per channel (or token), 1 until something sets it.

    ``watcher``, if set, gets the two maxima that the factor shall balance, at each forward of the owner.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(size))
        self.watcher: Callable[[torch.Tensor, torch.Tensor], None] | None = None


class Parts(NamedTuple):
    """What a LET layer multiplies and adds: weight (O, I, ...), bias (O,), border kernel (O, 1, kh, kw)."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    border: torch.Tensor | None


class LetLayer(nn.Module):
    """y = Q((x - o) / s) Q(W s) + Q(b) + W o: what Linear and Conv2d have in common; s and o are per input channel.

    Without quantization the output is that of the plain layer for any s other than 0 and any o.

    Args:
        module: The plain layer; its parameters are taken over, not copied.
        channels: Number of input channels.
        recipe: How input, weight and bias are quantized.
    """

    offset_sign: OffsetSign = "minus"

    def __init__(self, module: nn.Linear | nn.Conv2d, channels: int, recipe: LetRecipe) -> None:
        super().__init__()
        weight = module.weight
        self.weight, self.bias = weight, module.bias
        self.scale = Scale(channels)
        self.offset = nn.Parameter(torch.zeros(channels))
        axis = recipe.split.activation_axis if recipe.split else 1
        self.activation_quantizer = _quantizer(recipe.activation, recipe.split, axis)
        self.weight_quantizer = _quantizer(recipe.weight, recipe.split, 1, weight.shape[0], weight.dim())
        self.bias_quantizer = _quantizer(recipe.bias if self.bias is not None else None, None, 0)
        self.to(weight.device, weight.dtype)
        self.input_is_transformed = False
        self.folded: Parts | None = None

    def fold(self) -> None:
        """Compute Q(W s) and the terms behind it once, for inference; (x - o) / s stays before the quantizer."""
        self.folded = None
        with torch.no_grad():
            self.folded = self.parts()

    def unfold(self) -> None:
        """Go back to computing them at each forward."""
        self.folded = None

    def parts(self) -> Parts:
        """Return what the transformed input meets, differentiable in weight, scale, offset and bounds."""
        if self.folded is not None:
            return self.folded
        weight = self.weight_quantizer(self.weight * self.per_weight(self.scale.value))
        bias = None if self.bias is None else self.bias_quantizer(self.bias)
        border = (self.weight * self.per_weight(self.offset)).sum(1, keepdim=True)
        if self.has_border():
            return Parts(weight, bias, border)
        term = border.flatten(1).sum(1)
        return Parts(weight, term if bias is None else bias + term, None)

    def per_weight(self, channels: torch.Tensor) -> torch.Tensor:
        """Return values per input channel so that they broadcast against the weight."""
        return channels

    def has_border(self) -> bool:
        """Whether the offset's term differs at the image border."""
        return False

    def transformed(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """Return (x - o) / s, channels on the given axis of ``x``."""
        if self.input_is_transformed:
            return x
        shape = [1] * x.dim()
        shape[axis] = -1
        offset = self.offset.view(shape)
        return (x + offset if self.offset_sign == "plus" else x - offset) / self.scale.value.view(shape)


class LetLinear(LetLayer):
    """A Linear with LET.

    Args:
        module: The plain layer.
        recipe: How input, weight and bias are quantized.
        offset_sign: ``minus`` for (x - o) / s. ``plus`` for (x + o) / s, an error of the released code that its weights
            have learned with: the output is then off by 2 W o.
        vector_maximum: How the initial scale sees inputs (B, C): ``channel``, or ``tensor`` for one maximum over all of
            it, as the released code has it.
    """

    def __init__(self, module: nn.Linear, recipe: LetRecipe, offset_sign: OffsetSign = "minus",
                 vector_maximum: VectorMaximum = "channel") -> None:
        super().__init__(module, module.in_features, recipe)
        self.offset_sign, self.vector_maximum = offset_sign, vector_maximum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out)."""
        if self.scale.watcher is not None:
            size = x.detach().abs()
            joint = x.dim() == 2 and self.vector_maximum == "tensor"
            maximum = size.amax().expand(x.shape[-1]) if joint else size.flatten(0, -2).amax(0)
            self.scale.watcher(maximum, self.weight.detach().abs().amax(0))
        weight, bias, _ = self.parts()
        return functional.linear(self.activation_quantizer(self.transformed(x, -1)), weight, bias)


class LetConv2d(LetLayer):
    """A Conv2d with LET.

    Args:
        module: The plain layer, padded with zeros.
        recipe: How input, weight and bias are quantized.
        padding: ``zero_after`` pads the rounded, transformed input with zeros, so the offset's term is smaller at the
            border (released code). ``transformed_zero`` pads the input itself, before the transformation; then the term
            is one number per output channel. Both are exact without quantization.

    Raises:
        UserError: The convolution pads with something other than zeros.
    """

    def __init__(self, module: nn.Conv2d, recipe: LetRecipe, padding: Padding = "zero_after") -> None:
        if module.padding_mode != "zeros":
            raise UserError(f"a Conv2d with padding_mode '{module.padding_mode}' cannot be transformed; leave it out "
                            "by 'none'")
        self.groups = module.groups
        super().__init__(module, module.in_channels, recipe)
        self.stride, self.dilation = module.stride, module.dilation
        self.pads = _pads(module)
        self.pads_input = padding == "transformed_zero" and any(self.pads)
        self.padding: str | Sequence[int] = 0, 0
        if not self.pads_input:
            self.padding = module.padding

    def per_weight(self, channels: torch.Tensor) -> torch.Tensor:
        """Return values per input channel as (O or 1, C / groups, 1, 1)."""
        outputs = self.weight.shape[0] // self.groups if self.groups > 1 else 1
        return channels.view(self.groups, -1).repeat_interleave(outputs, 0)[:, :, None, None]

    def has_border(self) -> bool:
        """Whether zeros are padded behind the transformation."""
        return any(self.pads) and not self.pads_input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H', W')."""
        if self.scale.watcher is not None:
            rows = self.weight.detach().abs().amax((2, 3))
            columns = rows.view(self.groups, -1, rows.shape[1]).amax(1).flatten()
            self.scale.watcher(x.detach().abs().amax((0, 2, 3)), columns)
        if self.pads_input:
            x = functional.pad(x, self.pads)
        x = self.activation_quantizer(self.transformed(x, 1))
        weight, bias, border = self.parts()
        y = functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        if border is None:
            return y
        inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        return y + functional.conv2d(inside, border, None, self.stride, self.padding, self.dilation)


def _pads(module: nn.Conv2d) -> list[int]:
    """Return the padding of a convolution as left, right, top, bottom."""
    if module.padding == "valid":
        return [0, 0, 0, 0]
    pads = []
    for axis in (1, 0):
        if isinstance(module.padding, str):
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [module.padding[axis]] * 2
    return pads


@torch.no_grad()
def fold_into_norm(norm: nn.GroupNorm | nn.LayerNorm, layers: Sequence[LetLayer]) -> None:
    """Let a norm's affine part do (x - o) / s for the layers that read it; only after s and o have stopped changing.

    Args:
        norm: Its output goes to ``layers`` and nowhere else, channels unmixed.
        layers: Their scales and offsets must be equal.

    Raises:
        UserError: The norm has no affine part, the layers differ, or one pads its input before the transformation.
    """
    first = layers[0]
    if norm.weight is None or norm.bias is None:
        raise UserError("a norm without weight and bias can take no transformation")
    for layer in layers:
        if getattr(layer, "pads_input", False):
            raise UserError("a Conv2d with 'padding: transformed_zero' must transform its input itself")
        if layer.offset_sign != first.offset_sign or not (torch.equal(layer.scale.value, first.scale.value)
                                                          and torch.equal(layer.offset, first.offset)):
            raise UserError("layers behind one norm have different scales or offsets; tie them before folding")
    norm.weight.div_(first.scale.value)
    norm.bias.copy_(first.transformed(norm.bias, 0))
    for layer in layers:
        layer.input_is_transformed = True
