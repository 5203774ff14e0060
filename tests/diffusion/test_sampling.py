"""Sampling against the released code, and the promises about noise, batches and sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from basicsr_quant.diffusion.padding import reflect_to_multiple
from basicsr_quant.diffusion.sampling import image_noise, sample
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.errors import UserError

MakeNetwork = Callable[..., nn.Module]


class Recorder(nn.Module):
    """Keeps what a network sees and says."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen, self.said = network, [], []
        self.total_step, self.window_multiple = network.total_step, network.window_multiple
        self.group_of = network.group_of
        self.calls: list[tuple[int, Any]] = []

    def forward(self, image: Tensor, condition: Tensor, timesteps: Tensor, group: int | None = None) -> Tensor:
        self.calls.append((int(timesteps.flatten()[0]), group))
        self.seen.append(image)
        self.said.append(self.network(image, condition, timesteps, group))
        return self.said[-1]


def _condition(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [
    (torch.float32, "f32", 1e-4), (torch.float64, "f64", 1e-10)])
def test_recorded_sampling(released: nn.Module, recorded: dict[str, Tensor], dtype: torch.dtype, suffix: str,
                           tolerance: float) -> None:
    network, done = Recorder(released.to(dtype)), []
    result = sample(network, recorded["lr"].to(dtype), NoiseSchedule(), 5, lambda draw, shape: recorded["noise"],
                    lambda *progress: done.append(progress))
    close = {"rtol": 0, "atol": tolerance}
    for number, timestep in enumerate((1600, 1200, 800, 400, 0)):
        torch.testing.assert_close(network.said[number], recorded[f"eps.t{timestep}.{suffix}"], **close)
        after = (*network.seen[1:], result)[number]
        torch.testing.assert_close(after, recorded[f"latent_after.t{timestep}.{suffix}"], **close)
    torch.testing.assert_close(result, recorded[f"final.{suffix}"], **close)
    assert network.calls == [(1600, 2), (1200, 1), (800, 1), (400, 0), (0, 0)]
    assert done == [(number, 5) for number in range(1, 6)] and not result.requires_grad


@pytest.mark.parametrize("scheduler_type", ["DDIM", "DDPM"])
def test_the_batch_does_not_matter(make_tiny: MakeNetwork, scheduler_type: Any) -> None:
    network, condition, schedule = make_tiny().double(), _condition(4, 3, 14, 9), NoiseSchedule(scheduler_type)
    together = sample(network, condition, schedule, 6, image_noise(3, range(10, 14)))
    alone = [sample(network, condition[row:row + 1], schedule, 6, image_noise(3, [10 + row])) for row in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-8)
    repeated = sample(network, condition, schedule, 6, image_noise(3, range(10, 14)))
    other = sample(network, condition, schedule, 6, image_noise(4, range(10, 14)))
    assert torch.equal(repeated, together) and not torch.allclose(other, together, atol=1e-3)


def test_noise_is_the_same_to_the_bit_in_any_batch() -> None:
    draws = [0, 1, 49]
    for draw in draws:
        together = image_noise(3, [4, 5, 6])(draw, (3, 8, 8))
        assert together.dtype == torch.float32
        for row, number in enumerate([4, 5, 6]):
            assert torch.equal(image_noise(3, [number])(draw, (3, 8, 8))[0], together[row])
    first = [image_noise(seed, [number])(draw, (3, 8, 8)) for seed in (3, 4) for number in (0, 1) for draw in draws]
    assert len({tensor.numpy().tobytes() for tensor in first}) == len(first)
    assert abs(float(torch.cat(first).mean())) < 0.1 and abs(float(torch.cat(first).std()) - 1) < 0.1


def test_ddpm_draws_once_a_step_and_ddim_once(make_tiny: MakeNetwork) -> None:
    for scheduler_type, expected in (("DDIM", [0]), ("DDPM", [0, 1, 2])):
        draws: list[int] = []

        def noise(draw: int, shape: Sequence[int], draws: list[int] = draws) -> Tensor:
            draws.append(draw)
            return image_noise(0, [0])(draw, shape)

        sample(make_tiny().double(), _condition(1, 3, 8, 8), NoiseSchedule(scheduler_type), 3, noise)  # type: ignore[arg-type]
        assert draws == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 16), (3, 5), (7, 8), (17, 10)])
def test_any_size(make_tiny: MakeNetwork, size: tuple[int, int]) -> None:
    network = make_tiny(channel_mults=[1, 2, 4, 8], norm_groups=2, fp_res=[16, 8]).double()
    assert network.window_multiple == 8
    condition = _condition(1, 3, *size)
    result = sample(network, condition, NoiseSchedule(), 2, image_noise(0, [0]))
    assert result.shape == condition.shape and result.dtype == torch.float64 and torch.isfinite(result).all()
    padded = reflect_to_multiple(condition, 8)
    whole = sample(network, padded, NoiseSchedule(), 2, image_noise(0, [0]))
    assert torch.equal(whole[..., :size[0], :size[1]], result)


def test_reflection_equals_torchs_where_that_is_defined() -> None:
    for height, width in ((9, 15), (8, 10), (13, 8)):
        image = _condition(2, 3, height, width)
        expected = functional.pad(image, (0, -width % 8, 0, -height % 8), mode="reflect")
        assert torch.equal(reflect_to_multiple(image, 8), expected)
    row = torch.arange(3.0).view(1, 1, 1, 3)
    assert reflect_to_multiple(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert reflect_to_multiple(row, 8).shape == (1, 1, 8, 8)
    image = _condition(1, 3, 8, 16)
    assert reflect_to_multiple(image, 8) is image


def test_reduced_precision_keeps_the_latent_in_float32(make_tiny: MakeNetwork) -> None:
    network = make_tiny().to(torch.bfloat16)
    result = sample(network, _condition(1, 3, 8, 8).bfloat16(), NoiseSchedule(), 3, image_noise(0, [0]))
    assert result.dtype == torch.float32 and torch.isfinite(result).all()


def test_what_cannot_be_sampled_is_one_line(make_tiny: MakeNetwork) -> None:
    condition, noise = _condition(1, 3, 8, 8), image_noise(0, [0])
    network = make_tiny().double()
    for problem, text in (
        (lambda: sample(network, condition, NoiseSchedule(), 2001, noise), "2001 sampling steps"),
        (lambda: sample(network, condition[:, :, :0], NoiseSchedule(), 5, noise), "image of 0x8 pixels"),
        (lambda: sample(network, condition, NoiseSchedule(), 5, image_noise(0, [0, 1])), "one index for every image"),
        (lambda: sample(make_tiny(total_step=1000).double(), condition, NoiseSchedule(), 5, noise),
         "timestep 1600 is out of range: the network's total_step is 1000"),
    ):
        with pytest.raises(UserError, match=text) as raised:
            problem()
        assert "\n" not in str(raised.value)
