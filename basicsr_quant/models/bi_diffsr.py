"""``model_type: BIDiffSRModel``: BI-DiffSR, its baselines and SR3: restoration by diffusion."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import nn

from basicsr_quant.archs.published.bi_diffsr import check_groups
from basicsr_quant.archs.published.table import importer
from basicsr_quant.archs.self_ensemble import self_ensemble
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.diffusion.held_out import held_out_error
from basicsr_quant.diffusion.sampling import image_noise, sample
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.diffusion.training import check_timestep_draw
from basicsr_quant.errors import UserError
from basicsr_quant.io.progress import FIRST_LINE_SECONDS, reporter
from basicsr_quant.io.weights import apply_state_dict
from basicsr_quant.models.base import Batch, Stage
from basicsr_quant.models.noise_prediction import NoisePredictionStep
from basicsr_quant.models.sr import SRModel
from basicsr_quant.options.component import MetricOptions
from basicsr_quant.options.methods.bi_diffsr import BIDiffSROptions, BIDiffSRValOptions
from basicsr_quant.options.optimization import OPTIMIZERS
from basicsr_quant.quant.binary.conv2d import clamp_latent_weights, frozen_binary_weights
from basicsr_quant.quant.binary.slopes import set_progress
from basicsr_quant.quant.binary.timestep import unused_parameters
from basicsr_quant.registry import LOSSES

LPIPS = "calculate_lpips"


class BIDiffSRModel(SRModel):
    """Train ``network_g`` to predict noise, and restore images by sampling with it.

    Images come in enlarged to HR size, as :class:`basicsr_quant.data.multi_paired.MultiPairedImageDataset` gives them.
    """

    options: BIDiffSROptions
    condition_at_target_size = True
    knows_tiles = False

    def __init__(self, options: BIDiffSROptions, device: torch.device) -> None:
        if options.val is not None:
            options = msgspec.structs.replace(options, val=_with_lpips_crop(options.val))
        super().__init__(options, device)
        self.schedule = NoiseSchedule(**msgspec.structs.asdict(options.beta_schedule))
        if options.train is not None:
            check_timestep_draw(self._network, options.train.timestep_draw)

    def load_state(self, network: nn.Module, state: dict[str, torch.Tensor], path: Path, strict: bool) -> None:
        """Load weights under their published names, of as many timestep groups as the network has."""
        ours = importer(self.options.network_g)(state)
        if self.options.network_g.type == "BIDiffSRUNet":
            check_groups(ours, network.state_dict(), f"'{path}'")
        apply_state_dict(network, ours, path, strict)

    def prepare_training(self, dataset: PairedImageDataset) -> None:
        """Switch to training mode."""
        grouped = any(True for _ in unused_parameters(self._network, ()))
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if grouped and several and not self.options.find_unused_parameters:
            raise UserError("find_unused_parameters is false, but a step leaves timestep groups of the network out; "
                            "set find_unused_parameters=true to train with several processes")
        super().prepare_training(dataset)

    def stage(self, index: int = 0) -> Stage:
        """Return the only stage: ``optim_g`` on all parameters, ``pixel_opt`` between predicted and true noise."""
        train, network = self.options.train, self._network
        assert train is not None
        optimizer = train.optim_g.build(OPTIMIZERS, params=network.parameters())
        step = NoisePredictionStep(network, self.schedule, train.pixel_opt.build(LOSSES), self.options.manual_seed,
                                   train.timestep_draw, train.compile)
        step.settle_before(optimizer, train.unused_groups)

        def before_step(progress: float) -> None:
            step.begin()
            set_progress(network, progress)

        return Stage("noise prediction", "g", step, [optimizer], partial(clamp_latent_weights, network), before_step)

    def inference_form(self, network: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which weights are made binary once."""
        return frozen_binary_weights(network)

    def restore(self, image: torch.Tensor, network: nn.Module | None = None,
                samples: Sequence[int] = (0,)) -> torch.Tensor:
        """Restore images by sampling.

        Args:
            image: LR images enlarged to HR size, (B, 3, H, W), on any device.
            network: Used in place of :attr:`network`; in eval mode.
            samples: Index of each image in its data set; decides, with ``manual_seed``, on the noise.

        Returns:
            (B, 3, H, W) float32 in [-1, 1] on the image's device (images lie in [0, 1]).

        Raises:
            UserError: The image is empty.
        """
        restoring = network if network is not None else self.network
        dtype = next(restoring.parameters()).dtype
        noise = image_noise(self.options.manual_seed, samples)

        def run(condition: torch.Tensor) -> torch.Tensor:
            return sample(restoring, condition.to(self.device, dtype), self.schedule, None, noise,
                          self._progress(samples))

        with torch.inference_mode():
            restored = self_ensemble(run, image) if self.self_ensemble else run(image)
        return restored.to(image.device).float()

    def own_measures(self, sample: Batch, index: int, network: nn.Module) -> dict[str, float]:
        """Return ``noise_l1``, the error of the predicted noise, if ``val:noise_draws`` asks for it."""
        draws = self.options.val.noise_draws if self.options.val is not None else 0
        if not draws:
            return {}
        return {"noise_l1": held_out_error(network, sample, index, self.schedule, self.options.manual_seed, draws)}

    def _progress(self, samples: Sequence[int]) -> Callable[[int, int], None] | None:
        """Return what shows the steps of a sampling that takes long."""
        if self.options.val is not None and not self.options.val.pbar:
            return None
        report, began = reporter(f"sampling image {samples[0] + 1}"), time.monotonic()

        def show(done: int, total: int) -> None:
            if time.monotonic() - began >= FIRST_LINE_SECONDS:
                report(done, total)

        return show

    def metadata(self, label: str) -> dict[str, Any]:
        """Return the diffusion that the network was trained for, too."""
        return {**super().metadata(label), "mode": self.options.mode,
                "beta_schedule": msgspec.structs.asdict(self.options.beta_schedule)}


def _with_lpips_crop(options: BIDiffSRValOptions) -> BIDiffSRValOptions:
    """Return the options with ``lpips_crop`` handed on to the metrics that it is for."""
    metrics: dict[str, MetricOptions] = {
        name: msgspec.structs.replace(metric, arguments={"crop": options.lpips_crop, **metric.arguments})
        if metric.type == LPIPS else metric for name, metric in options.metrics.items()}
    return msgspec.structs.replace(options, metrics=metrics)
