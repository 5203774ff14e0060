"""How much noise there is at each timestep, and how a sample is stepped back through it: diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from basicsr_quant.errors import UserError
from basicsr_quant.registry import nearest

SchedulerType = Literal["DDIM", "DDPM"]
Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]


class NoiseSchedule:
    """Noise levels of all timesteps, and the way back in any number of steps.

    Images are not rescaled for the diffusion; the estimate of the clean image is clipped to [-1, 1] in every step.

    Args:
        scheduler_type: ``DDIM`` (deterministic, eta 0) or ``DDPM`` (fresh noise in every step).
        schedule: How beta grows: ``linear``, ``scaled_linear`` (its square root does) or ``squaredcos_cap_v2`` (cosine;
            takes no notice of ``linear_start`` and ``linear_end``).
        n_timestep: Number of timesteps T that the network is trained for.
        linear_start: Beta of timestep 0.
        linear_end: Beta of timestep T - 1.
        prediction_type: What the network predicts: ``epsilon`` (the noise), ``sample`` (the clean image) or
            ``v_prediction``.
        num_inference_steps: Steps of a sampling that does not say how many; 1 to T.

    Raises:
        UserError: A name is unknown, a number makes no sense, or diffusers is not installed.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", eq. 2 to 7; Song et al., "Denoising Diffusion
    Implicit Models", eq. 12 and 16; the defaults are BI-DiffSR's (specification 3.1).
    """

    def __init__(
        self, scheduler_type: SchedulerType = "DDIM", schedule: Schedule = "linear", n_timestep: int = 2000,
        linear_start: float = 1e-6, linear_end: float = 1e-2, prediction_type: PredictionType = "epsilon",
        num_inference_steps: int = 50,
    ) -> None:
        _check_name("scheduler_type", scheduler_type, get_args(SchedulerType))
        _check_name("schedule", schedule, get_args(Schedule))
        _check_name("prediction_type", prediction_type, get_args(PredictionType))
        if n_timestep < 1:
            raise UserError(f"beta_schedule:n_timestep is {n_timestep}; give the number of timesteps, such as 2000")
        if schedule != "squaredcos_cap_v2" and not 0 < linear_start <= linear_end < 1:
            raise UserError(f"beta_schedule: linear_start {linear_start:g} and linear_end {linear_end:g}; "
                            "0 < linear_start <= linear_end < 1 is needed")
        self.scheduler_type, self.schedule, self.prediction_type = scheduler_type, schedule, prediction_type
        self.n_timestep, self.linear_start, self.linear_end = n_timestep, linear_start, linear_end
        self.num_inference_steps = self._checked_steps(num_inference_steps)
        self._scheduler = self._make()
        if not self.alphas_cumprod[0] < 1:
            raise UserError(f"beta_schedule:linear_start {linear_start:g} is too small: timestep 0 would have no noise "
                            "in float32; raise it to 1e-7 or more")
        if not self.alphas_cumprod[-1] > 0:
            raise UserError(f"beta_schedule:linear_end {linear_end:g} is too large: in float32 nothing of the image is "
                            f"left after {n_timestep} timesteps; lower it or beta_schedule:n_timestep")

    @property
    def betas(self) -> Tensor:
        """Share of noise that each timestep adds, float32 (T,)."""
        betas: Tensor = self._scheduler.betas
        return betas

    @property
    def alphas_cumprod(self) -> Tensor:
        """Share of the image's power that is left at each timestep, float32 (T,)."""
        remaining: Tensor = self._scheduler.alphas_cumprod
        return remaining

    def add_noise(self, image: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return sqrt(abar_t) image + sqrt(1 - abar_t) noise.

        Args:
            image: (B, C, H, W), float32 or float64.
            noise: Of the same shape and dtype.
            timesteps: int64 (B,), 0 to T - 1; not checked here.
        """
        noisy: Tensor = self._scheduler.add_noise(image, noise, timesteps)
        return noisy

    def target(self, image: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network should predict; see :meth:`add_noise` for the arguments."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return image
        velocity: Tensor = self._scheduler.get_velocity(image, noise, timesteps)
        return velocity

    def noise_error_factor(self, timestep: int) -> float:
        """Return by what an error of the prediction is multiplied to give the error of the noise that it implies."""
        kept = float(self.alphas_cumprod[timestep])
        factors = {"epsilon": 1.0, "v_prediction": kept**0.5, "sample": (kept / (1 - kept)) ** 0.5}
        return factors[self.prediction_type]

    def reverse(self, steps: int | None = None) -> ReverseProcess:
        """Return the way from noise to an image.

        Args:
            steps: How many, 1 to T; None for ``num_inference_steps``. The timesteps are multiples of T // steps.

        Raises:
            UserError: The number is out of range.
        """
        steps = self.num_inference_steps if steps is None else self._checked_steps(steps)
        scheduler = self._make()
        scheduler.set_timesteps(steps)
        is_ancestral = self.scheduler_type == "DDPM"
        if is_ancestral:
            scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        return ReverseProcess(tuple(scheduler.timesteps.tolist()), is_ancestral, scheduler)

    def _checked_steps(self, steps: int) -> int:
        if not 1 <= steps <= self.n_timestep:
            raise UserError(f"{steps} sampling steps with beta_schedule:n_timestep {self.n_timestep}; "
                            f"set beta_schedule:num_inference_steps to 1 to {self.n_timestep}")
        return steps

    def _make(self) -> Any:
        """Return a fresh scheduler of diffusers, with every setting that matters written out.

        DDIM with eta 1 and the noise derived anew from the clipped image is DDPM with its smaller variance. It stands
        for DDPM here, since only DDIM's step accepts noise that somebody else has drawn.
        """
        try:
            from diffusers import DDIMScheduler
        except ModuleNotFoundError as error:
            raise UserError("sampling needs the package 'diffusers', which is not installed; run: pip install "
                            "-c constraints.txt diffusers") from error
        return DDIMScheduler(
            num_train_timesteps=self.n_timestep, beta_start=self.linear_start, beta_end=self.linear_end,
            beta_schedule=self.schedule, prediction_type=self.prediction_type, clip_sample=True, clip_sample_range=1.0,
            set_alpha_to_one=True, steps_offset=0, thresholding=False, timestep_spacing="leading",
            rescale_betas_zero_snr=False,
        )


@dataclass(frozen=True)
class ReverseProcess:
    """The steps of one sampling; made by :meth:`NoiseSchedule.reverse`.

    Attributes:
        timesteps: Falling, ending with 0.
        is_ancestral: Whether steps add noise (DDPM).
        scheduler: diffusers' scheduler, set to these timesteps.
    """

    timesteps: tuple[int, ...]
    is_ancestral: bool
    scheduler: Any

    def needs_noise(self, timestep: int) -> bool:
        """Whether the step from ``timestep`` adds noise; the last one never does."""
        return self.is_ancestral and timestep > 0

    def step(self, prediction: Tensor, timestep: int, latent: Tensor, noise: Tensor | None = None) -> Tensor:
        """Go from one timestep to the next.

        Args:
            prediction: The network's, (B, C, H, W).
            timestep: One of ``timesteps``.
            latent: What the network was given, (B, C, H, W).
            noise: N(0, 1), (B, C, H, W), where :meth:`needs_noise` says so; None otherwise.

        Returns:
            (B, C, H, W); after timestep 0 the image, in [-1, 1].
        """
        latent, _ = self.scheduler.step(
            prediction, timestep, latent, eta=0.0 if noise is None else 1.0, variance_noise=noise,
            use_clipped_model_output=self.is_ancestral, return_dict=False)
        return latent


def _check_name(key: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UserError(f"beta_schedule:{key} '{name}' is unknown{nearest(str(name), list(known))}; "
                        f"known: {', '.join(known)}")
