"""OSEDiff: an enlarged image is encoded, denoised in one step under a constant prompt, and decoded.

Source: OSEDiff section 3; PassionSR specification 1.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from basicsr_quant.archs.latent_tiling import tiled_prediction
from basicsr_quant.archs.osediff import ALPHA_BAR, TIMESTEP, clean_latent, noise_schedule
from basicsr_quant.archs.osediff_input import bicubic
from basicsr_quant.archs.vae_tiling import decode_latent, encode_moments

SIDE_MULTIPLE = 8
_LOG_VARIANCE = (-30.0, 20.0)


class Tiles(NamedTuple):
    """Sizes above which parts of the pipeline run in tiles; 0 = never.

    Args:
        latent: Side of the UNet's tiles in latent pixels.
        latent_overlap: What neighbouring tiles of the UNet share.
        vae_encoder: Side of the encoder's tiles in pixels.
        vae_decoder: Side of the decoder's tiles in latent pixels.
    """

    latent: int = 96
    latent_overlap: int = 32
    vae_encoder: int = 1024
    vae_decoder: int = 224


class OSEDiff(nn.Module):
    """One-step diffusion super-resolution on diffusers' UNet and VAE.

    Args:
        unet: ``UNet2DConditionModel``, quantized or not.
        vae: ``AutoencoderKL``, quantized or not.
        context: Prompt embedding (1, tokens, width), the same for every image.
        scale: Factor of :meth:`forward`.
        timestep: t, 0 to 999.
        scaled_input: Whether the UNet sees sqrt(alpha_bar) z, where a prediction of zero means x0 = z; published is z.
        tiles: Tile sizes.
    """

    context: Tensor

    def __init__(self, unet: nn.Module, vae: nn.Module, context: Tensor, scale: int = 4, timestep: int = TIMESTEP,
                 scaled_input: bool = False, tiles: Tiles = Tiles()) -> None:  # noqa: B008 (an immutable tuple)
        super().__init__()
        self.unet: Any = unet
        self.vae: Any = vae
        self.register_buffer("context", context, persistent=False)
        self.scale, self.timestep, self.scaled_input, self.tiles = scale, timestep, scaled_input, tiles
        self.alpha_bar = ALPHA_BAR if timestep == TIMESTEP else float(noise_schedule()[timestep])
        self.latent_factor = float(vae.config.scaling_factor)  # type: ignore[union-attr, arg-type]
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]
        self.latent_channels = int(vae.config.latent_channels)  # type: ignore[union-attr, arg-type]
        self.side_multiple = max(SIDE_MULTIPLE, self.factor)
        self.window_multiple = self.side_multiple // math.gcd(self.side_multiple, scale)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of the latent of an image."""
        return self.latent_channels, height // self.factor, width // self.factor

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (B, C, h, w) of the VAE's posterior, in the VAE's own scale.

        Args:
            image: (B, 3, H, W) in [0, 1]; sides are multiples of ``side_multiple``.
        """
        mean, log_variance = encode_moments(self.vae, 2 * image - 1, self.tiles.vae_encoder).chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCE)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the latent z of images (B, 3, H, W) in [0, 1].

        Args:
            image: The enlarged input.
            noise: N(0, 1) draws (B, C, h, w) for a sample of the posterior; None = its mode.
        """
        mean, log_variance = self.posterior(image)
        if noise is not None:
            mean = mean + torch.exp(log_variance / 2) * noise.to(mean)
        return self.latent_factor * mean

    def unet_input(self, latent: Tensor) -> Tensor:
        """Return what the UNet sees of a latent z."""
        return math.sqrt(self.alpha_bar) * latent if self.scaled_input else latent

    def predict_noise(self, latent: Tensor, on_progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return eps for the UNet's input (B, C, h, w), in tiles if it is large."""
        if not self.tiles.latent:
            return self._unet_call(latent)
        return tiled_prediction(self._unet_call, latent, self.tiles.latent, self.tiles.latent_overlap, on_progress)

    def _unet_call(self, latent: Tensor) -> Tensor:
        context = self.context.to(latent).expand(latent.shape[0], -1, -1)
        noise: Tensor = self.unet(latent, self.timestep, context, return_dict=False)[0]
        return noise

    def one_step(self, latent: Tensor, on_progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return the clean latent x0 of a latent z, both (B, C, h, w)."""
        noisy = self.unet_input(latent)
        return clean_latent(noisy, self.predict_noise(noisy, on_progress), self.alpha_bar)

    def decode(self, latent: Tensor) -> Tensor:
        """Return the image (B, 3, H, W) of a clean latent, about [0, 1], not clamped."""
        return decode_latent(self.vae, latent / self.latent_factor, self.tiles.vae_decoder) / 2 + 0.5

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Restore low-resolution images; differentiable.

        Args:
            image: (B, 3, h, w) in [0, 1]; scale times a side is a multiple of ``side_multiple``.
            noise: See :meth:`encode`.

        Returns:
            (B, 3, scale*h, scale*w), not clamped.
        """
        return self.decode(self.one_step(self.encode(bicubic(image, self.scale), noise)))
