"""The held-out error of noise prediction: fixed inputs, padding left out, other predictions judged by their noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from basicsr_quant.archs.bi_diffsr_unet import BIDiffSRUNet
from basicsr_quant.diffusion.held_out import held_out_error, held_out_timesteps
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.errors import UserError

SCHEDULE = NoiseSchedule(n_timestep=40, num_inference_steps=4)


def item(index: int) -> dict[str, Any]:
    """A random image of a size that is no multiple of anything."""
    values = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(index))
    return {"lq": values[0], "gt": values[1], "name": f"im{index}"}


class Recorder(nn.Module):
    """Predicts zeros and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Tensor, int]] = []

    def forward(self, image: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        self.seen.append((image, int(timesteps)))
        return torch.zeros_like(image) + self.weight


def test_the_same_inputs_every_time() -> None:
    first, second = Recorder(), Recorder()
    errors = [held_out_error(first, item(index), index, SCHEDULE, seed=1, draws=4) for index in range(3)]
    assert errors == [held_out_error(second, item(index), index, SCHEDULE, seed=1, draws=4) for index in range(3)]
    assert all(torch.equal(left[0], right[0]) for left, right in zip(first.seen, second.seen, strict=True))
    mean = sum(errors) / 3
    assert mean == pytest.approx((2 / torch.pi) ** 0.5, abs=0.05)  # mean of abs(N(0, 1)), predicted as 0
    assert errors[0] != held_out_error(first, item(0), 0, SCHEDULE, seed=2, draws=4)


def test_timesteps_are_spread() -> None:
    for image in range(20):
        drawn = held_out_timesteps(0, image, 40, 4)
        assert [timestep // 10 for timestep in drawn] == [0, 1, 2, 3]
    assert held_out_timesteps(0, 0, 40, 40) == list(range(40))


class Biased(nn.Module):
    """Knows the image and noise of :func:`item` 0 and predicts noise that is 0.1 too large."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.kind = kind

    def forward(self, image: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        kept = SCHEDULE.alphas_cumprod[int(timesteps)].double()
        clean = item(0)["gt"][None].double()
        noise = (image - kept.sqrt() * clean) / (1 - kept).sqrt() + 0.1
        implied = (image - (1 - kept).sqrt() * noise) / kept.sqrt()
        return {"epsilon": noise, "sample": implied, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * implied}[
            self.kind]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_predictions_are_judged_by_their_noise(kind: str) -> None:
    schedule = NoiseSchedule(n_timestep=40, num_inference_steps=4, prediction_type=kind)
    assert held_out_error(Biased(kind), item(0), 0, schedule, 0, 4) == pytest.approx(0.1, rel=1e-4)


def test_binary_networks_and_padding() -> None:
    torch.manual_seed(0)
    network = BIDiffSRUNet(inner_channel=4, norm_groups=2, channel_mults=(1, 2), res_blocks=1, image_size=16,
                           fp_res=(16,), total_step=40, dynamic_group=2).eval()
    error = held_out_error(network, item(0), 0, SCHEDULE, 0, 4)
    assert 0.5 < error < 3
    assert error == held_out_error(network, item(0), 0, SCHEDULE, 0, 4)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="1 to 40 are possible"):
        held_out_error(Recorder(), item(0), 0, SCHEDULE, 0, 41)
    with pytest.raises(UserError, match="'im0' has no HR image"):
        held_out_error(Recorder(), {"lq": item(0)["lq"], "name": "im0"}, 0, SCHEDULE, 0, 4)
