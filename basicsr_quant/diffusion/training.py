"""What a noise-prediction network is trained with: timesteps, noise, noisy images, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_quant import randomness
from basicsr_quant.archs.timestep_embedding import check_timesteps
from basicsr_quant.diffusion.sampling import group_argument
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.errors import UserError
from basicsr_quant.registry import nearest

TimestepDraw = Literal["per_batch", "per_sample"]


def check_timestep_draw(network: nn.Module, timestep_draw: str) -> None:
    """Check, before a training, that timesteps are drawn in a way that the network can handle.

    Raises:
        UserError: The way is unknown, or it mixes timestep groups in a network that takes the first sample's for all.
    """
    known = get_args(TimestepDraw)
    if timestep_draw not in known:
        raise UserError(f"train:timestep_draw '{timestep_draw}' is unknown{nearest(str(timestep_draw), list(known))}; "
                        f"known: {', '.join(known)}")
    takes_first = getattr(network, "groups", 1) > 1 and getattr(network, "group_choice", "") == "first_sample"
    if timestep_draw == "per_sample" and takes_first:
        raise UserError("train:timestep_draw per_sample mixes timestep groups in a batch, but network_g:group_choice "
                        "is first_sample; set group_choice to per_sample, or timestep_draw to per_batch")


def draw_timesteps(
    seed: int, iteration: int, samples: Sequence[int], total: int, timestep_draw: TimestepDraw = "per_batch",
) -> list[int]:
    """Draw the timesteps of a batch, uniform on 0 to ``total`` - 1.

    Args:
        seed: ``manual_seed``.
        iteration: Training iteration.
        samples: Global indices of the batch's samples.
        total: Number of timesteps T.
        timestep_draw: ``per_sample`` gives each sample its own, whatever batch it is in; ``per_batch`` gives the first
            sample's to all of a process's batch (released code; processes differ).

    Source: BI-DiffSR specification 3.3.
    """
    drawn = samples[:1] if timestep_draw == "per_batch" else samples
    own = [int(randomness.generator(seed, "timestep", iteration, number).integers(total)) for number in drawn]
    return own * len(samples) if timestep_draw == "per_batch" else own


def draw_noise(seed: int, iteration: int, samples: Sequence[int], image: Tensor) -> Tensor:
    """Draw N(0, 1) noise for a batch, one generator for each sample, like ``image`` in shape, dtype and device."""
    return randomness.normal(seed, "noise", iteration, samples, image.shape[1:]).to(image)


def used_groups(network: nn.Module, timesteps: Sequence[int]) -> set[int]:
    """Return the timestep groups of a batch, for :func:`basicsr_quant.quant.binary.timestep.settle_unused_groups`."""
    group_of = getattr(network, "group_of", None)
    return {0} if group_of is None else {group_of(timestep) for timestep in timesteps}


def noise_prediction_loss(
    network: nn.Module, condition: Tensor, image: Tensor, timesteps: Sequence[int], noise: Tensor,
    schedule: NoiseSchedule, loss: Callable[[Tensor, Tensor], Tensor] = functional.l1_loss,
    forward: Callable[..., Tensor] | None = None, **draws: Any,
) -> Tensor:
    """Put noise on images and compare the network's prediction with it.

    Args:
        network: A :class:`basicsr_quant.archs.diffusion_unet.DiffusionUNet`.
        condition: LR images enlarged to HR size, (B, 3, H, W).
        image: HR images, (B, 3, H, W) in [0, 1]; all on the network's device and of its dtype.
        timesteps: B of them: :func:`draw_timesteps`.
        noise: (B, 3, H, W): :func:`draw_noise`.
        schedule: Noise levels, and what is to be predicted.
        loss: Called with (prediction, target); L1, averaged over everything, by default.
        forward: Called in place of the network: its compiled form, which is left to find the timestep groups by itself,
            so that one graph serves all of them.
        **draws: Random keyword arguments of the network's forward (``dropout_draws``).

    Returns:
        What ``loss`` returns.

    Raises:
        UserError: A timestep is out of the network's range, or condition and image differ in size.

    Source: BI-DiffSR eq. 2 with an L1 distance (specification 3.3).
    """
    if condition.shape[-2:] != image.shape[-2:]:
        sizes = ["x".join(map(str, tensor.shape[-2:])) for tensor in (condition, image)]
        raise UserError(f"the condition has {sizes[0]} pixels and the HR image {sizes[1]}; a diffusion network needs "
                        "both of HR size: set the data set's type to MultiPairedImageDataset")
    check_timesteps(timesteps, min(getattr(network, "total_step", schedule.n_timestep), schedule.n_timestep))
    time = torch.tensor(timesteps).to(image.device, non_blocking=True)
    noisy = schedule.add_noise(image, noise, time)
    if forward is None:
        forward, draws = network, {**group_argument(network, timesteps), **draws}
    prediction = forward(noisy, condition, time[:, None], **draws)
    return loss(prediction, schedule.target(image, noise, time))
