"""What all methods on OSEDiff's pipeline have in common: how it is built, tested and used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from basicsr_quant import randomness
from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.archs.osediff_restore import Settings, restore_image
from basicsr_quant.archs.self_ensemble import self_ensemble
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.models.osediff_networks import skeleton_pipeline
from basicsr_quant.models.osediff_steps import POSTERIOR_STREAM
from basicsr_quant.options.methods.osediff import OSEDiffBaseOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OneStepModel(RestorationModel):
    """A method whose network is OSEDiff's pipeline."""

    options: OSEDiffBaseOptions
    knows_tiles = False
    _network: OSEDiff

    @classmethod
    def skeleton(cls, options: Any) -> nn.Module:
        """Return the pipeline without weights."""
        return skeleton_pipeline(options)

    @property
    def network(self) -> OSEDiff:
        """The pipeline that restores images."""
        return self._network

    @property
    def trains_in_train_mode(self) -> bool:
        """The networks have no layers that know a training mode."""
        return False

    def prepare_testing(self) -> None:
        """Bring the networks to the precision of the test."""
        self._network.to(DTYPES[self.options.pipeline.precision])

    def adopt(self, network: nn.Module) -> None:
        """Restore images with another pipeline, in the precision of the test."""
        super().adopt(network.to(DTYPES[self.options.pipeline.precision]))

    def restore(self, image: torch.Tensor, network: nn.Module | None = None,
                samples: Sequence[int] = (0,)) -> torch.Tensor:
        """Enlarge images of any size, one after another.

        Args:
            image: (B, 3, H, W) float in [0, 1] on any device.
            network: A pipeline, or an averaged UNet or VAE to be used in the pipeline.
            samples: Index of each image in its data set, for the posterior's noise.

        Returns:
            (B, 3, scale*H, scale*W) float32 in [0, 1]; with ``pipeline:fit: lanczos`` possibly smaller.
        """
        options, pipeline = self.options.pipeline, self._pipeline(network)
        settings = Settings(options.enlarge, options.fit, options.process_size, options.rounding, options.color_fix,
                            options.round_trip)

        def run(single: torch.Tensor, sample: int) -> torch.Tensor:
            def draw(shape: tuple[int, int, int]) -> torch.Tensor:
                return randomness.normal(self.options.manual_seed, POSTERIOR_STREAM, 0, [sample], shape)

            return restore_image(pipeline, single, self.options.scale, settings,
                                 draw if options.posterior == "sample" else None)

        results = []
        with torch.inference_mode():
            for single, sample in zip(image.split(1), samples, strict=True):
                function = partial(run, sample=sample)
                results.append(self_ensemble(function, single) if self.self_ensemble else function(single))
        return torch.cat(results)

    def _pipeline(self, network: nn.Module | None) -> OSEDiff:
        own = self._network
        if network is None or isinstance(network, OSEDiff):
            return network or own
        is_unet = isinstance(network, type(own.unet))
        return OSEDiff(network if is_unet else own.unet, own.vae if is_unet else network, own.context, own.scale,
                       own.timestep, own.scaled_input, own.tiles)
