"""How well a network predicts noise in images that it was not trained on: a measure that needs no sampling."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_quant import randomness
from basicsr_quant.archs.padding import crop_to
from basicsr_quant.diffusion.padding import reflect_to_multiple
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.diffusion.training import noise_prediction_loss
from basicsr_quant.errors import UserError


def held_out_timesteps(seed: int, image: int, total: int, draws: int) -> list[int]:
    """Return timesteps for an image, one from each of ``draws`` equal parts of 0 to ``total`` - 1.

    Args:
        seed: Another one gives other timesteps.
        image: Index of the image.
        total: Number of timesteps T.
        draws: 1 to T.
    """
    places = randomness.generator(seed, "held_out_timestep", 0, image).random(draws)
    return [int((part + place) * total / draws) for part, place in enumerate(places.tolist())]


def held_out_error(network: nn.Module, sample: Mapping[str, Any], index: int, schedule: NoiseSchedule, seed: int,
                   draws: int) -> float:
    """Measure the mean absolute error of the predicted noise in one image.

    Timesteps and noise depend on seed, image and draw alone, so that networks are compared on the same inputs. A
    network that predicts something else is judged by the noise that its prediction implies.

    Args:
        network: Called with (noisy image, condition, timesteps), in eval mode.
        sample: ``lq`` of HR size and ``gt``, (3, H, W) each, and ``name``.
        index: Of the image in its data set.
        schedule: Noise levels.
        seed: Of timesteps and noise.
        draws: Timesteps, spread evenly over all of them; 1 to T.

    Raises:
        UserError: ``draws`` is out of range, or the image has no ground truth.
    """
    if not 1 <= draws <= schedule.n_timestep:
        raise UserError(f"{draws} held-out timesteps per image; 1 to {schedule.n_timestep} are possible")
    if "gt" not in sample:
        raise UserError(f"'{sample['name']}' has no HR image; held-out errors need dataroot_gt")
    parameter = next(network.parameters())
    multiple = getattr(network, "window_multiple", 1)
    condition, image = (reflect_to_multiple(sample[name][None].to(parameter.device, parameter.dtype), multiple)
                        for name in ("lq", "gt"))
    loss = partial(_cropped_l1, sample["gt"].shape[-2:])
    errors = []
    for draw, timestep in enumerate(held_out_timesteps(seed, index, schedule.n_timestep, draws)):
        noise = randomness.normal(seed, "held_out_noise", draw, [index], image.shape[1:]).to(image)
        with torch.inference_mode():
            error = noise_prediction_loss(network, condition, image, [timestep], noise, schedule, loss)
        errors.append(float(error) * schedule.noise_error_factor(timestep))
    return float(np.mean(errors, dtype=np.float64))


def _cropped_l1(size: tuple[int, int], prediction: Tensor, target: Tensor) -> Tensor:
    """Return the error in the image itself; what pads it to a size that the network can halve does not count."""
    return functional.l1_loss(crop_to(prediction, *size), crop_to(target, *size))
