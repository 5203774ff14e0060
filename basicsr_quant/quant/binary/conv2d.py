"""A convolution whose input and weight have one bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from basicsr_quant.quant.binary.weights import WeightBinarizer

BinaryWeight = tuple[torch.Tensor, torch.Tensor | None]
"""Signs, and the scale by which they are multiplied."""


class BinaryConv2d(nn.Conv2d):
    """y = scale * (binary(x) * sign W) (+ b); the border is padded with zeros after the signs are taken.

    ``weight`` is the latent float weight. With no gradient asked for nothing but signs is computed, and inside
    :func:`frozen_binary_weights` those of the weight only once.

    Args:
        in_channels: C of the input.
        out_channels: O of the output.
        kernel_size: Odd side k; stride is 1, padding k // 2.
        weight_binarizer: Makes the weight binary.
        activation_binarizer: Makes the input binary; None if it is so already.
        bias: Whether there is a bias per output channel.
        spatial_scale: Whether the output is multiplied by the mean of abs(x) over all channels and the kernel's
            window, a constant in the backward pass (XNOR-Net's K).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, weight_binarizer: WeightBinarizer,
                 activation_binarizer: nn.Module | None, bias: bool = False, spatial_scale: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.weight_binarizer = weight_binarizer
        self.activation_binarizer = activation_binarizer
        self.spatial_scale = spatial_scale
        self.frozen_weight: BinaryWeight | None = None

    def binary_weight(self) -> BinaryWeight:
        """Return signs (O, C, k, k) and scale; see :class:`basicsr_quant.quant.binary.weights.WeightBinarizer`."""
        if self.frozen_weight is not None:
            return self.frozen_weight
        parts: BinaryWeight = self.weight_binarizer(self.weight)
        return parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, O, H, W)."""
        binary = x if self.activation_binarizer is None else self.activation_binarizer(x)
        signs, scale = self.binary_weight()
        sums = functional.conv2d(binary, signs, padding=self.padding)
        return scaled_sums(sums, x, scale, self.kernel_size if self.spatial_scale else None, self.bias)


def scaled_sums(sums: torch.Tensor, x: torch.Tensor, scale: torch.Tensor | None, window: tuple[int, ...] | None,
                bias: torch.Tensor | None) -> torch.Tensor:
    """Return the output of a binary convolution, made from its sums of signs.

    Args:
        sums: (B, O, H, W).
        x: The convolution's input (B, C, H, W).
        scale: Per output channel (O,), or None.
        window: Kernel size, if the sums are also scaled by the mean magnitude of ``x`` in the window; else None.
        bias: Per output channel (O,), or None.
    """
    if scale is not None:
        sums = sums * scale.view(1, -1, 1, 1)
    if window is not None:
        magnitude = x.detach().abs().mean(dim=1, keepdim=True)
        sums = sums * functional.avg_pool2d(magnitude, window, stride=1, padding=window[0] // 2)
    return sums if bias is None else sums + bias.view(1, -1, 1, 1)


def binary_layers(model: nn.Module) -> Iterator[tuple[str, BinaryConv2d]]:
    """Yield the names and modules of all binary convolutions."""
    for name, module in model.named_modules():
        if isinstance(module, BinaryConv2d):
            yield name, module


@contextmanager
def frozen_binary_weights(model: nn.Module) -> Iterator[None]:
    """Context in which every weight is made binary once: the clean form, for inference with weights that stay."""
    layers = [layer for _, layer in binary_layers(model)]
    with torch.no_grad():
        for layer in layers:
            layer.frozen_weight = layer.binary_weight()
    try:
        yield
    finally:
        for layer in layers:
            layer.frozen_weight = None


@torch.no_grad()
def clamp_latent_weights(model: nn.Module) -> None:
    """Clamp latent weights whose binarizer asks for it (BNN), to be called after each optimizer step."""
    for _, layer in binary_layers(model):
        bound = layer.weight_binarizer.latent_bound
        if bound is not None:
            layer.weight.clamp_(-bound, bound)
