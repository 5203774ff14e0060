"""From noise to an image: the network and the scheduler, step after step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from basicsr_quant import randomness
from basicsr_quant.archs.padding import crop_to
from basicsr_quant.archs.timestep_embedding import check_timesteps
from basicsr_quant.diffusion.padding import reflect_to_multiple
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.errors import UserError

Noise = Callable[[int, Sequence[int]], Tensor]


def image_noise(seed: int, samples: Sequence[int], stream: str = "sampling_noise") -> Noise:
    """Return the noise of some images, which depends on seed, image, shape and number of the draw alone.

    Args:
        seed: ``manual_seed``, or another number for another set of samples.
        samples: Index of every image of the batch in its data set.
        stream: See :func:`basicsr_quant.randomness.generator`.

    Returns:
        (number of the draw, (C, H, W)) -> float32 (B, C, H, W) from N(0, 1), on the CPU.
    """
    def draw(number: int, shape: Sequence[int]) -> Tensor:
        return randomness.normal(seed, stream, number, samples, shape)

    return draw


@torch.no_grad()
def sample(
    network: nn.Module, condition: Tensor, schedule: NoiseSchedule, steps: int | None, noise: Noise,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Restore images.

    The condition is reflected at the bottom and right to sides that the network can halve often enough; noise is drawn
    for the larger size, and the result is cropped.

    Args:
        network: A :class:`basicsr_quant.archs.diffusion_unet.DiffusionUNet` in eval mode.
        condition: LR images enlarged to HR size, (B, 3, H, W), on the network's device and of its dtype.
        schedule: How to step.
        steps: Number of steps; None for the schedule's own.
        noise: :func:`image_noise`. Draw 0 is the start, draw k what the k-th step adds (DDPM only).
        on_progress: Called with (steps done, steps in all) after every step.

    Returns:
        (B, 3, H, W) in [-1, 1] (images lie in [0, 1]), of the condition's dtype but at least float32.

    Raises:
        UserError: The number of steps or a timestep is out of range, an image is empty, or the noise does not fit.

    Source: BI-DiffSR specification 3.4.
    """
    height, width = condition.shape[-2:]
    if min(condition.shape) < 1:
        raise UserError(f"an image of {height}x{width} pixels cannot be restored; remove it")
    process = schedule.reverse(steps)
    check_timesteps(process.timesteps[:1], getattr(network, "total_step", schedule.n_timestep))
    condition = reflect_to_multiple(condition, getattr(network, "window_multiple", 1))
    dtype = torch.promote_types(condition.dtype, torch.float32)

    def drawn(number: int) -> Tensor:
        values = noise(number, condition.shape[1:])
        if values.shape != condition.shape:
            raise UserError(f"noise of shape {tuple(values.shape)} for padded images of shape "
                            f"{tuple(condition.shape)}; give one index for every image")
        return values.to(condition.device, dtype)

    latent = drawn(0)
    for number, timestep in enumerate(process.timesteps, start=1):
        time = torch.full((1, 1), timestep, device=condition.device)
        prediction = network(latent.to(condition.dtype), condition, time, **group_argument(network, [timestep]))
        added = drawn(number) if process.needs_noise(timestep) else None
        latent = process.step(prediction.to(dtype), timestep, latent, added)
        if on_progress is not None:
            on_progress(number, len(process.timesteps))
    return crop_to(latent, height, width)


def group_argument(network: nn.Module, timesteps: Sequence[int]) -> dict[str, int]:
    """Return the keyword argument that tells a network its timestep group, or nothing if it must look for itself.

    Args:
        network: Has ``group_of(timestep)`` if it knows groups.
        timesteps: Of all samples of the batch, as the host knows them.
    """
    group_of = getattr(network, "group_of", None)
    groups = {group_of(timestep) for timestep in timesteps} if group_of is not None else set()
    return {"group": groups.pop()} if len(groups) == 1 else {}
