"""The training steps of OSEDiff's stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from basicsr_quant import randomness
from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.models.base import Batch

POSTERIOR_STREAM = "posterior"


def posterior_noise(seed: int, batch: Batch, shape: tuple[int, ...]) -> Tensor:
    """Return N(0, 1) draws (B, *shape) for the global samples of a batch."""
    return randomness.normal(seed, POSTERIOR_STREAM, batch["iteration"], batch["sample"], shape)


def _images(network: nn.Module, batch: Batch, name: str) -> Tensor:
    parameter = next(network.parameters())
    images: Tensor = batch[name].to(parameter.device, parameter.dtype, non_blocking=True)
    return images


class AutoencoderStep(nn.Module):
    """The VAE against HR patches: reconstruction from a sample of the posterior, and a small KL term.

    Args:
        network: The pipeline, of which the VAE learns.
        pixel_loss: Called with (reconstruction, target) in [-1, 1].
        kl_weight: Factor of the KL divergence from N(0, 1), averaged over latent elements.
        seed: ``manual_seed``.
        compiled: Whether to run through ``torch.compile``.
    """

    def __init__(self, network: OSEDiff, pixel_loss: nn.Module, kl_weight: float, seed: int, compiled: bool) -> None:
        super().__init__()
        self.network, self.pixel_loss = network, pixel_loss
        self.kl_weight, self.seed = kl_weight, seed
        self._round_trip = torch.compile(self._reconstruct) if compiled else self._reconstruct

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``reconstruction`` and ``kl`` of a batch ``{gt: (B, 3, H, W), ...}``."""
        target = _images(self.network, batch, "gt")
        noise = posterior_noise(self.seed, batch, self.network.latent_shape(*target.shape[-2:])).to(target)
        image, mean, log_variance = self._round_trip(target, noise)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return {"reconstruction": self.pixel_loss(2 * image - 1, 2 * target - 1), "kl": self.kl_weight * divergence}

    def _reconstruct(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.network.posterior(image)
        latent = mean + torch.exp(log_variance / 2) * noise
        return self.network.decode(self.network.latent_factor * latent), mean, log_variance


class OSEDiffStep(nn.Module):
    """Restored patches against HR patches: the whole pipeline, of which the given parts learn.

    Source: OSEDiff section 3 without its VSD term; PassionSR specification 1.7.

    Args:
        network: The pipeline.
        pixel_loss: Called with (restored, target) in [-1, 1].
        perceptual_loss: Called with (restored, target) in [0, 1]; None = no such term.
        seed: ``manual_seed``.
        sampled: Whether latents are samples of the posterior, not its mode.
        clamped: Whether values outside of the range of images give no gradient, as in the published training.
        compiled: Whether to run the pipeline through ``torch.compile``.
    """

    def __init__(self, network: OSEDiff, pixel_loss: nn.Module, perceptual_loss: nn.Module | None, seed: int,
                 sampled: bool, clamped: bool, compiled: bool) -> None:
        super().__init__()
        self.network, self.pixel_loss, self.perceptual_loss = network, pixel_loss, perceptual_loss
        self.seed, self.sampled, self.clamped = seed, sampled, clamped
        self._forward = torch.compile(network) if compiled else network

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``pixel`` and perhaps ``perceptual`` of a batch ``{lq: (B, 3, h, w), gt: (B, 3, H, W), ...}``."""
        images, target = (_images(self.network, batch, name) for name in ("lq", "gt"))
        noise = None
        if self.sampled:
            noise = posterior_noise(self.seed, batch, self.network.latent_shape(*target.shape[-2:]))
        restored = self._forward(images, noise)
        if self.clamped:
            restored = restored.clamp(0, 1)
        losses = {"pixel": self.pixel_loss(2 * restored - 1, 2 * target - 1)}
        if self.perceptual_loss is not None:
            losses["perceptual"] = self.perceptual_loss(restored, target)
        return losses
