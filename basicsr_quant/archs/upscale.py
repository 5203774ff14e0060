"""Plain interpolation in the place of a network: the lower anchor of every table."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class Upscale(nn.Module):
    """Enlarge by interpolation.

    Args:
        scale: Factor.
        mode: ``bicubic`` is MATLAB's (a = -0.5, borders mirrored); ``bilinear`` is what the published table calls
            bicubic.
    """

    def __init__(self, scale: int, mode: Literal["bicubic", "bilinear"]) -> None:
        super().__init__()
        self.scale, self.mode = scale, mode
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, h, w) to (B, 3, scale*h, scale*w)."""
        if self.mode == "bilinear":
            return functional.interpolate(image, scale_factor=self.scale, mode="bilinear", align_corners=False)
        border = 2
        for axis in (2, 3):
            length = image.shape[axis]
            first = image.narrow(axis, 0, min(border, length)).flip(axis)
            last = image.narrow(axis, max(length - border, 0), min(border, length)).flip(axis)
            image = torch.cat([first, image, last], axis)
        size = [length * self.scale for length in image.shape[2:]]
        enlarged = functional.interpolate(image, size=size, mode="bicubic", align_corners=False, antialias=True)
        crop = border * self.scale
        return enlarged[..., crop:-crop, crop:-crop]
