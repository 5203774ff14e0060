"""Noise levels and single steps against the released code and against diffusers' own DDPM."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from basicsr_quant.diffusion.schedule import NoiseSchedule
from basicsr_quant.errors import UserError

CLOSE = {"rtol": 0, "atol": 1e-6}


def test_recorded_noise_levels(recorded: dict[str, Tensor]) -> None:
    schedule = NoiseSchedule()
    torch.testing.assert_close(schedule.betas, recorded["betas"], rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.alphas_cumprod, recorded["alphas_cumprod"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("timestep", [0, 1, 1000, 1999])
def test_recorded_noising(recorded: dict[str, Tensor], timestep: int) -> None:
    image, noise = recorded["addnoise.x0"], recorded["addnoise.noise"]
    noisy = NoiseSchedule().add_noise(image, noise, torch.full((2,), timestep))
    torch.testing.assert_close(noisy, recorded[f"addnoise.t{timestep}"], **CLOSE)


def test_each_sample_has_its_own_noise_level() -> None:
    schedule, random = NoiseSchedule(), torch.Generator().manual_seed(0)
    image, noise = (torch.randn(3, 3, 4, 4, generator=random, dtype=torch.float64) for _ in range(2))
    together = schedule.add_noise(image, noise, torch.tensor([5, 500, 1999]))
    for row, timestep in enumerate([5, 500, 1999]):
        left = schedule.alphas_cumprod[timestep].double()
        expected = left.sqrt() * image[row] + (1 - left).sqrt() * noise[row]
        torch.testing.assert_close(together[row], expected, rtol=0, atol=1e-12)


def test_recorded_timesteps(recorded: dict[str, Tensor]) -> None:
    assert NoiseSchedule().reverse(5).timesteps == tuple(recorded["timesteps_5"].tolist()) == (1600, 1200, 800, 400, 0)
    assert NoiseSchedule().reverse().timesteps == tuple(recorded["timesteps_50"].tolist())


@pytest.mark.parametrize("timestep", [1960, 1000, 40, 0])
def test_recorded_steps(recorded: dict[str, Tensor], timestep: int) -> None:
    process = NoiseSchedule().reverse(50)
    assert not process.needs_noise(timestep)
    torch.testing.assert_close(process.step(recorded["step.eps"], timestep, recorded["step.x"]),
                               recorded[f"step50.t{timestep}"], **CLOSE)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 999, 1001, 2000])
@pytest.mark.parametrize("scheduler_type", ["DDIM", "DDPM"])
def test_any_number_of_steps(scheduler_type: Any, steps: int) -> None:
    process = NoiseSchedule(scheduler_type).reverse(steps)
    assert len(process.timesteps) == steps and process.timesteps[-1] == 0
    assert all(early > late for early, late in zip(process.timesteps, process.timesteps[1:], strict=False))
    latent = torch.linspace(-3, 3, 48).view(1, 3, 4, 4)
    for timestep in process.timesteps:
        noise = torch.ones_like(latent) if process.needs_noise(timestep) else None
        latent = process.step(torch.full_like(latent, 0.1), timestep, latent, noise)
    assert torch.isfinite(latent).all() and latent.abs().max() <= 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [2, 50, 2000])
def test_ddpm_equals_that_of_diffusers(prediction_type: Any, steps: int) -> None:
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(2000, 1e-6, 1e-2, "linear", prediction_type=prediction_type)
    reference.set_timesteps(steps)
    reference.alphas_cumprod = reference.alphas_cumprod.double()
    process = NoiseSchedule("DDPM", prediction_type=prediction_type).reverse(steps)
    assert process.timesteps == tuple(reference.timesteps.tolist())
    random = torch.Generator().manual_seed(2)
    latent, prediction = (torch.randn(2, 3, 4, 4, generator=random, dtype=torch.float64) for _ in range(2))
    for timestep in (process.timesteps[0], process.timesteps[len(process.timesteps) // 2], process.timesteps[-1]):
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        expected = reference.step(prediction, timestep, latent, torch.Generator().manual_seed(7)).prev_sample
        stepped = process.step(prediction, timestep, latent, noise if process.needs_noise(timestep) else None)
        torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_prediction_gives_the_image_back(schedule: Any, prediction_type: Any) -> None:
    noising = NoiseSchedule(schedule=schedule, prediction_type=prediction_type, n_timestep=100, num_inference_steps=4)
    random = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, 4, 4, generator=random, dtype=torch.float64)
    noise = torch.randn(1, 3, 4, 4, generator=random, dtype=torch.float64)
    process = noising.reverse()
    latent = noising.add_noise(image, noise, torch.tensor(process.timesteps[:1]))
    for timestep in process.timesteps:
        latent = process.step(noising.target(image, noise, torch.tensor([timestep])), timestep, latent)
    torch.testing.assert_close(latent, image, rtol=0, atol=1e-4)


def test_two_samplings_at_once_do_not_disturb_each_other() -> None:
    schedule = NoiseSchedule()
    first = schedule.reverse(50)
    latent, prediction = torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    before = first.step(prediction, 1000, latent)
    schedule.reverse(4)
    schedule.add_noise(latent.double(), latent.double(), torch.tensor([3]))
    assert torch.equal(first.step(prediction, 1000, latent), before)


@pytest.mark.parametrize(("options", "text"), [
    ({"scheduler_type": "DDIN"}, r"scheduler_type 'DDIN' is unknown \(did you mean 'DDIM'\?\); known: DDIM, DDPM"),
    ({"schedule": "liner"}, r"schedule 'liner' is unknown \(did you mean 'linear'\?\)"),
    ({"prediction_type": "noise"}, "prediction_type 'noise' is unknown.*; known: epsilon, sample, v_prediction"),
    ({"n_timestep": 0}, "n_timestep is 0"),
    ({"linear_start": 0.02}, "linear_start 0.02 and linear_end 0.01"),
    ({"linear_start": -1.0}, "0 < linear_start"),
    ({"linear_start": 1e-9}, "linear_start 1e-09 is too small"),
    ({"linear_end": 0.9}, "linear_end 0.9 is too large"),
    ({"num_inference_steps": 0}, "0 sampling steps with beta_schedule:n_timestep 2000"),
    ({"num_inference_steps": 2001}, "2001 sampling steps.*; set beta_schedule:num_inference_steps to 1 to 2000"),
])
def test_meaningless_options_are_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=f"^(beta_schedule.*)?{text}") as raised:
        NoiseSchedule(**options)
    assert "\n" not in str(raised.value)


def test_missing_diffusers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install -c constraints.txt diffusers") as raised:
        NoiseSchedule()
    assert "\n" not in str(raised.value)


def test_importing_the_package_leaves_diffusers_alone() -> None:
    modules = ", ".join(f"basicsr_quant.diffusion.{name}" for name in ("schedule", "sampling", "training"))
    code = f"import sys, {modules}; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
