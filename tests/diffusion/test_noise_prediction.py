"""Draws of the training and the noise-prediction loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from basicsr_quant import randomness
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.diffusion.training import (
    check_timestep_draw,
    draw_noise,
    draw_timesteps,
    noise_prediction_loss,
    used_groups,
)
from basicsr_quant.errors import UserError
from basicsr_quant.losses.pixel import MSELoss
from basicsr_quant.quant.binary.timestep import settle_unused_groups

MakeNetwork = Callable[..., nn.Module]


def _images(batch: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(6)
    return tuple(torch.rand(batch, 3, 8, 8, generator=random, dtype=torch.float64) for _ in range(2))  # type: ignore


def test_timesteps_per_sample_do_not_depend_on_the_batch() -> None:
    together = draw_timesteps(1, 7, range(8), 2000, "per_sample")
    apart = [timestep for first in range(0, 8, 2)
             for timestep in draw_timesteps(1, 7, range(first, first + 2), 2000, "per_sample")]
    assert apart == together and len(set(together)) > 1
    assert draw_timesteps(1, 8, range(8), 2000, "per_sample") != together
    assert draw_timesteps(2, 7, range(8), 2000, "per_sample") != together


def test_one_timestep_per_batch_differs_between_processes() -> None:
    batches = [draw_timesteps(1, 7, range(4 * rank, 4 * rank + 4), 2000, "per_batch") for rank in range(4)]
    assert all(len(batch) == 4 and len(set(batch)) == 1 for batch in batches)
    assert len({batch[0] for batch in batches}) == 4


def test_timesteps_are_uniform() -> None:
    drawn = [draw_timesteps(0, iteration, [0], 5)[0] for iteration in range(2000)]
    assert set(drawn) == set(range(5)) and max(drawn.count(timestep) for timestep in range(5)) < 480


def test_noise_of_a_sample_does_not_depend_on_the_batch() -> None:
    image = torch.empty(4, 3, 8, 8, dtype=torch.float64)
    noise = draw_noise(1, 7, range(4), image)
    assert noise.shape == image.shape and noise.dtype == image.dtype
    assert torch.equal(draw_noise(1, 7, [2], image[:1])[0], noise[2])
    assert not torch.equal(draw_noise(1, 8, [2], image[:1])[0], noise[2])


def test_loss_is_the_mean_distance_to_the_noise(make_tiny: MakeNetwork) -> None:
    network, schedule, (condition, image) = make_tiny(dropout=0.0).double(), NoiseSchedule(), _images()
    timesteps, noise = [700] * 4, draw_noise(0, 0, range(4), image)
    loss = noise_prediction_loss(network, condition, image, timesteps, noise, schedule)
    left = schedule.alphas_cumprod[700].double()
    noisy = left.sqrt() * image + (1 - left).sqrt() * noise
    expected = (network(noisy, condition, torch.tensor(timesteps)) - noise).abs().mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    squared = noise_prediction_loss(network, condition, image, timesteps, noise, schedule, MSELoss())
    assert not torch.allclose(squared, loss)


def test_the_loss_of_a_batch_is_the_mean_over_its_samples(make_tiny: MakeNetwork) -> None:
    network, schedule = make_tiny(group_choice="per_sample").double().train(), NoiseSchedule()
    condition, image = _images()
    timesteps, noise = [100, 900, 1900, 300], draw_noise(0, 0, range(4), image)
    assert used_groups(network, timesteps) == {0, 1, 2}
    draws = {name: randomness.uniform(0, name, 0, range(4), shape) for name, shape in network.training_draws(4).items()}
    together = noise_prediction_loss(network, condition, image, timesteps, noise, schedule, **draws)
    rows = [slice(row, row + 1) for row in range(4)]
    apart = [noise_prediction_loss(network, condition[row], image[row], timesteps[row], noise[row], schedule,
                                   **{name: draw[row] for name, draw in draws.items()}) for row in rows]
    torch.testing.assert_close(together, torch.stack(apart).mean(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("timesteps", [[100] * 4, [100, 200, 300, 400]])
def test_one_group_leaves_the_others_without_gradient(make_tiny: MakeNetwork, timesteps: list[int]) -> None:
    network, schedule, (condition, image) = make_tiny(dropout=0.0).double(), NoiseSchedule(), _images()
    noise = draw_noise(0, 0, range(4), image)
    noise_prediction_loss(network, condition, image, timesteps, noise, schedule).backward()
    for name, parameter in network.named_parameters():
        in_other_group = ".members.1." in name or ".members.2." in name
        assert (parameter.grad is None) == in_other_group, name
    optimizer = torch.optim.Adam(network.parameters())
    settle_unused_groups(network, used_groups(network, timesteps), "skip", optimizer)
    optimizer.step()


def test_a_compiled_form_is_called_in_place_of_the_network(make_tiny: MakeNetwork) -> None:
    network, (condition, image) = make_tiny().double(), _images(1)
    calls: list[dict[str, Any]] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs)
        result: Tensor = network(*args, **kwargs)
        return result

    noise_prediction_loss(network, condition, image, [1999], torch.zeros_like(image), NoiseSchedule(), forward=forward)
    assert calls == [{}]  # it finds the group by itself


def test_bad_input_is_one_line(make_tiny: MakeNetwork) -> None:
    network, (condition, image) = make_tiny(), _images(1)
    for problem, text in (
        (lambda: check_timestep_draw(network, "per_image"), "train:timestep_draw 'per_image' is unknown"),
        (lambda: check_timestep_draw(network, "per_sample"), "mixes timestep groups"),
        (lambda: noise_prediction_loss(network, condition, image, [2000], image, NoiseSchedule()),
         "timestep 2000 is out of range"),
        (lambda: noise_prediction_loss(network, condition[..., :4], image, [0], image, NoiseSchedule()),
         "condition has 8x4 pixels and the HR image 8x8.*MultiPairedImageDataset"),
    ):
        with pytest.raises(UserError, match=text) as raised:
            problem()
        assert "\n" not in str(raised.value)
    check_timestep_draw(network, "per_batch")
    check_timestep_draw(make_tiny(group_choice="per_sample"), "per_sample")
    check_timestep_draw(make_tiny(dynamic_group=1), "per_sample")
