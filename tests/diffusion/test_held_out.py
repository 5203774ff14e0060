"""The held-out error of noise prediction: fixed inputs, padding left out, the network left as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from basicsr_quant.archs.bi_diffsr_unet import BIDiffSRUNet
from basicsr_quant.diffusion.held_out import held_out_l1, held_out_timesteps, mean_held_out_l1
from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.errors import UserError

SCHEDULE = NoiseSchedule(n_timestep=40, num_inference_steps=4)


class Images:
    """Three random images of a size that is no multiple of anything."""

    def __init__(self, **without: Any) -> None:
        self.without = without

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        values = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(index))
        item = {"lq": values[0], "gt": values[1], "name": f"im{index}"}
        return {key: value for key, value in item.items() if key not in self.without}


class Recorder(nn.Module):
    """Predicts zeros and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Tensor, int]] = []

    def forward(self, image: Tensor, condition: Tensor, timesteps: Tensor) -> Tensor:
        assert not self.training
        self.seen.append((image, int(timesteps)))
        return torch.zeros_like(image) + self.weight


def test_the_same_inputs_every_time() -> None:
    first, second = Recorder(), Recorder()
    errors = held_out_l1(first, Images(), SCHEDULE, seed=1, draws=4)
    assert errors == held_out_l1(second, Images(), SCHEDULE, seed=1, draws=4)
    assert list(errors) == ["im0", "im1", "im2"] and first.training
    assert all(torch.equal(left[0], right[0]) for left, right in zip(first.seen, second.seen, strict=True))
    mean = mean_held_out_l1(first, Images(), SCHEDULE, seed=1)
    assert mean == pytest.approx(sum(errors.values()) / 3)
    assert mean == pytest.approx((2 / torch.pi) ** 0.5, abs=0.05)  # mean of abs(N(0, 1)), predicted as 0
    assert mean != mean_held_out_l1(first, Images(), SCHEDULE, seed=2)


def test_timesteps_are_spread() -> None:
    for image in range(20):
        drawn = held_out_timesteps(0, image, 40, 4)
        assert [timestep // 10 for timestep in drawn] == [0, 1, 2, 3]
    assert held_out_timesteps(0, 0, 40, 40) == list(range(40))


def test_binary_networks_and_padding() -> None:
    torch.manual_seed(0)
    network = BIDiffSRUNet(inner_channel=4, norm_groups=2, channel_mults=(1, 2), res_blocks=1, image_size=16,
                           fp_res=(16,), total_step=40, dynamic_group=2)
    error = mean_held_out_l1(network, Images(), SCHEDULE)
    assert 0.5 < error < 3 and network.training
    assert error == mean_held_out_l1(network, Images(), SCHEDULE)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="1 to 40 are possible"):
        held_out_l1(Recorder(), Images(), SCHEDULE, draws=41)
    with pytest.raises(UserError, match="'im0' has no HR image"):
        held_out_l1(Recorder(), Images(gt=True), SCHEDULE)
