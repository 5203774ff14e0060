"""The training step of a diffusion network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.diffusion.training import (
    TimestepDraw,
    draw_noise,
    draw_timesteps,
    noise_prediction_loss,
    used_groups,
)
from basicsr_quant.models.base import Batch, forward_draws
from basicsr_quant.quant.binary.timestep import UnusedGroups, settle_unused_groups
from basicsr_quant.quant.reduction import reduce_


class NoisePredictionStep(nn.Module):
    """Noise is put on HR patches, and the network predicts it from the enlarged LR patches.

    Args:
        network: A :class:`basicsr_quant.archs.diffusion_unet.DiffusionUNet` in training.
        schedule: Noise levels, and what is to be predicted.
        pixel_loss: Called with (prediction, target).
        seed: ``manual_seed``, for timesteps, noise and dropout.
        timestep_draw: See :func:`basicsr_quant.diffusion.training.draw_timesteps`.
        compiled: Whether to run the network through ``torch.compile``.

    Source: BI-DiffSR section 3.1; specification 3.3.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, pixel_loss: nn.Module, seed: int,
                 timestep_draw: TimestepDraw, compiled: bool) -> None:
        super().__init__()
        self.network, self.pixel_loss = network, pixel_loss
        self.schedule, self.seed, self.timestep_draw = schedule, seed, timestep_draw
        self._forward = torch.compile(network) if compiled else None
        self._used: set[int] = set()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the scalar loss of a batch ``{lq: (B, 3, H, W), gt: (B, 3, H, W), ...}``."""
        parameter = next(self.network.parameters())
        device, dtype = parameter.device, parameter.dtype
        condition, image = (batch[name].to(device, dtype, non_blocking=True) for name in ("lq", "gt"))
        iteration, samples = batch["iteration"], batch["sample"]
        timesteps = draw_timesteps(self.seed, iteration, samples, self.schedule.n_timestep, self.timestep_draw)
        noise = draw_noise(self.seed, iteration, samples, image)
        draws = forward_draws(self.network, batch, self.seed, device) if self.network.training else {}
        self._used |= used_groups(self.network, timesteps)
        return {"pixel": noise_prediction_loss(self.network, condition, image, timesteps, noise, self.schedule,
                                               self.pixel_loss, self._forward, **draws)}

    def begin(self) -> None:
        """Forget which timestep groups were used: a new iteration begins."""
        self._used.clear()

    def settle_before(self, optimizer: torch.optim.Optimizer, policy: UnusedGroups) -> None:
        """Let every step of ``optimizer`` begin with :func:`settle_unused_groups`.

        Which groups were used since :meth:`begin` is known to the hosts, and exchanged between them; no device waits.

        Args:
            optimizer: Over the network's parameters.
            policy: ``skip`` or ``momentum``.
        """
        groups = getattr(self.network, "groups", 1)
        if groups < 2:
            return

        def settle(stepping: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
            counts = reduce_(torch.tensor([int(group in self._used) for group in range(groups)]), "max").tolist()
            used = {group for group, count in enumerate(counts) if count}
            settle_unused_groups(self.network, used, policy, stepping)

        optimizer.register_step_pre_hook(settle)
