"""From a low-resolution image to OSEDiff's result: sizes, colours and 8-bit conversions around the networks.

Source: PassionSR specification 1.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from basicsr_quant.archs.colour_fix import ColourFix, adain, fix_colours, truncated_to_8bit, wavelet
from basicsr_quant.archs.osediff_input import Enlarge, Fit, prepare_input, resize_8bit
from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.archs.padding import crop_to


class Settings(NamedTuple):
    """How an image goes through.

    Args:
        enlarge: See :func:`prepare_input`.
        fit: See :func:`prepare_input`.
        process_size: See :func:`prepare_input`.
        rounding: ``truncate``: values are cut to 8 bits after the decoder and after the colour fix, as published;
            ``once``: nothing is rounded before the result is written.
        colour_fix: ``adain``, ``wavelet`` or ``nofix``.
        round_trip: Leave the UNet out: what the VAE alone makes of the image.
    """

    enlarge: Enlarge = "torch"
    fit: Fit = "pad"
    process_size: int = 512
    rounding: Literal["truncate", "once"] = "once"
    colour_fix: ColourFix = "adain"
    round_trip: bool = False


def restore_image(network: OSEDiff, image: Tensor, scale: int, settings: Settings,
                  draw: Callable[[tuple[int, int, int]], Tensor] | None = None,
                  on_progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Restore one image.

    Args:
        network: On its device, in its precision.
        image: (1, 3, h, w) in [0, 1], of any size.
        scale: Factor.
        settings: See there.
        draw: Returns N(0, 1) draws of shape (1, C, h', w') for the latent shape (C, h', w'); None = the posterior's
            mode.
        on_progress: Called with (done, all) after each tile of the UNet.

    Returns:
        (1, 3, scale*h, scale*w) float32 in [0, 1] on the image's device; with ``fit: lanczos`` possibly smaller.
    """
    prepared = prepare_input(image, scale, settings.enlarge, settings.fit, network.side_multiple,
                             settings.process_size)
    parameter = next(network.parameters())
    enlarged = prepared.image.to(parameter.device)
    noise = None if draw is None else draw(network.latent_shape(*enlarged.shape[-2:]))
    latent = network.encode(enlarged.to(parameter.dtype), noise)
    if not settings.round_trip:
        latent = network.one_step(latent, on_progress)
    restored = network.decode(latent).float().clamp(0, 1)
    if not prepared.resized:
        restored, enlarged = (crop_to(picture, *prepared.size) for picture in (restored, enlarged))
    result = _coloured(restored, enlarged, settings)
    if prepared.resized and result.shape[-2:] != prepared.size:
        result = resize_8bit(result, prepared.size)
    return result.to(image.device)


def _coloured(restored: Tensor, reference: Tensor, settings: Settings) -> Tensor:
    if settings.rounding == "truncate":
        reference_8bit = reference.mul(255).round().to(torch.uint8)
        return fix_colours(truncated_to_8bit(restored), reference_8bit, settings.colour_fix).float() / 255
    if settings.colour_fix == "nofix":
        return restored
    change = adain if settings.colour_fix == "adain" else wavelet
    return change(restored, reference).clamp(0, 1)
