"""How well a network predicts noise in images that it was not trained on: a measure that needs no sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

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
from basicsr_quant.io.progress import track
from basicsr_quant.quant.binary.conv2d import frozen_binary_weights


class Images(Protocol):
    """A data set: ``lq`` of HR size and ``gt``, both (3, H, W), for each index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


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


def held_out_l1(network: nn.Module, images: Images, schedule: NoiseSchedule, seed: int = 0,
                draws: int = 4) -> dict[str, float]:
    """Measure the mean absolute error of the predicted noise.

    Timesteps and noise depend on seed, image and draw alone, so that networks are compared on the same inputs.

    Args:
        network: Called with (noisy image, condition, timesteps), on its device and in its dtype; its mode is restored.
        images: Whole images with ground truth, such as a ``MultiPairedImageDataset``.
        schedule: Noise levels.
        seed: Of timesteps and noise.
        draws: Timesteps for each image, spread evenly over all of them; 1 to T.

    Returns:
        Name -> mean over ``draws`` of one image, in the order of the images.

    Raises:
        UserError: ``draws`` is out of range, or an image has no ground truth.
    """
    if not 1 <= draws <= schedule.n_timestep:
        raise UserError(f"{draws} held-out timesteps per image; 1 to {schedule.n_timestep} are possible")
    errors: dict[str, float] = {}
    with _evaluating(network), frozen_binary_weights(network), torch.inference_mode():
        for index in track(range(len(images)), "held-out noise prediction"):
            item = images[index]
            if "gt" not in item:
                raise UserError(f"'{item.get('name', index)}' has no HR image; held-out errors need dataroot_gt")
            timesteps = held_out_timesteps(seed, index, schedule.n_timestep, draws)
            values = [_error(network, item, timestep, schedule, partial(_noise, seed, index, draw))
                      for draw, timestep in enumerate(timesteps)]
            errors[str(item["name"])] = float(np.mean(values, dtype=np.float64))
    return errors


def mean_held_out_l1(network: nn.Module, images: Images, schedule: NoiseSchedule, seed: int = 0,
                     draws: int = 4) -> float:
    """Return the average of :func:`held_out_l1` over the images, in float64."""
    return float(np.mean(list(held_out_l1(network, images, schedule, seed, draws).values()), dtype=np.float64))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _noise(seed: int, index: int, draw: int, shape: Sequence[int]) -> Tensor:
    return randomness.normal(seed, "held_out_noise", draw, [index], shape)


def _error(network: nn.Module, item: Mapping[str, Any], timestep: int, schedule: NoiseSchedule,
           noise: Callable[[Sequence[int]], Tensor]) -> float:
    """Return the error in the image itself; what pads it to a size that the network can halve does not count."""
    parameter = next(network.parameters())
    multiple = getattr(network, "window_multiple", 1)
    condition, image = (reflect_to_multiple(item[name][None].to(parameter.device, parameter.dtype), multiple)
                        for name in ("lq", "gt"))
    size: Sequence[int] = item["gt"].shape[-2:]

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return functional.l1_loss(crop_to(prediction, *size), crop_to(target, *size))

    drawn = noise(image.shape[1:]).to(image)
    return float(noise_prediction_loss(network, condition, image, [timestep], drawn, schedule, loss))
