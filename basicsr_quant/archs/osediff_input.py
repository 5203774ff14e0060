"""What OSEDiff's networks see: the enlarged low-resolution image, with sides that they can process."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional

from basicsr_quant.archs.padding import pad_to_multiple

Enlarge = Literal["pillow", "torch"]
Fit = Literal["lanczos", "lanczos_exact", "pad"]

_BICUBIC = PillowImage.Resampling.BICUBIC
_LANCZOS = PillowImage.Resampling.LANCZOS


class Prepared(NamedTuple):
    """An image for the networks.

    Args:
        image: (1, 3, H, W) float32 in [0, 1].
        size: Height and width of the result.
        resized: Whether the output is resized to ``size``; if not, it is cropped.
    """

    image: Tensor
    size: tuple[int, int]
    resized: bool


def bicubic(image: Tensor, scale: int) -> Tensor:
    """Enlarge (B, 3, h, w) by bicubic interpolation with a = -0.5, not clamped; differentiable."""
    return functional.interpolate(image, scale_factor=scale, mode="bicubic", antialias=True)


def resize_8bit(image: Tensor, size: tuple[int, int], filter: PillowImage.Resampling = _BICUBIC) -> Tensor:
    """Resize (1, 3, h, w) in [0, 1] by Pillow, which computes in 8 bits, to ``size`` = (height, width)."""
    values = image[0].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = PillowImage.fromarray(np.ascontiguousarray(values)).resize((size[1], size[0]), filter)
    resized = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return resized.to(image.device, torch.float32) / 255


def prepare_input(image: Tensor, scale: int, enlarge: Enlarge, fit: Fit, multiple: int, process_size: int) -> Prepared:
    """Enlarge an image and bring its sides to multiples.

    Args:
        image: (1, 3, h, w) in [0, 1].
        scale: Factor.
        enlarge: ``pillow``: bicubic in 8 bits, as published; ``torch``: the same filter, values not rounded.
        fit: ``lanczos`` as published: a shorter side below process_size / scale is enlarged first, sides are resized
            to the next lower multiples, and the output keeps that size unless the input was enlarged;
            ``lanczos_exact``: the output always gets scale times the input's size; ``pad``: nothing is resized,
            mirrored content is added to at least ``process_size`` and cropped off again.
        multiple: What the networks' sides must be multiples of.
        process_size: Side that the networks were trained on.

    Source: PassionSR specification 1.2, steps 1 to 3; ``pad`` is ours.
    """
    height, width = image.shape[-2:]
    target = (scale * height, scale * width)
    if fit == "pad":
        return Prepared(pad_to_multiple(_enlarged(image, scale, enlarge), multiple, process_size), target, False)
    short = min(height, width)
    was_small = short < process_size // scale
    if was_small:
        factor = process_size // scale / short
        image = resize_8bit(image, (int(factor * height), int(factor * width)))
    grown = _enlarged(image, scale, enlarge)
    height, width = (max(side - side % multiple, multiple) for side in grown.shape[-2:])
    fitted = grown if grown.shape[-2:] == (height, width) else resize_8bit(grown, (height, width), _LANCZOS)
    keeps_size = not was_small and fit == "lanczos"
    return Prepared(fitted, (height, width) if keeps_size else target, True)


def _enlarged(image: Tensor, scale: int, enlarge: Enlarge) -> Tensor:
    if enlarge == "torch":
        return bicubic(image.float(), scale).clamp(0, 1)
    return resize_8bit(image, (scale * image.shape[-2], scale * image.shape[-1]))
