"""Options of BI-DiffSR (``model_type: BIDiffSRModel``): a noise-prediction network that restores by diffusion."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from basicsr_quant.options.method import Method, Problem
from basicsr_quant.options.methods.sr import SROptions, SRTrainOptions
from basicsr_quant.options.types import NaturalNumber, PositiveInteger, ValOptions

LR_SIZED = "PairedImageDataset"
TOTAL_STEP = 2000
CHANNEL_MULTS = (1, 2, 4, 8)


class BetaScheduleOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much noise each timestep has, and how images are sampled."""

    scheduler_type: Annotated[Literal["DDIM", "DDPM"], Meta(
        description="DDIM: deterministic steps; DDPM: fresh noise in every step.")] = "DDIM"
    schedule: Annotated[Literal["linear", "scaled_linear", "squaredcos_cap_v2"], Meta(
        description="How beta grows; squaredcos_cap_v2 takes no notice of linear_start and linear_end.")] = "linear"
    n_timestep: Annotated[PositiveInteger, Meta(
        description="Number of timesteps; that of network_g:total_step.")] = TOTAL_STEP
    linear_start: Annotated[float, Meta(description="Beta of the first timestep.", ge=0, lt=1)] = 1e-6
    linear_end: Annotated[float, Meta(description="Beta of the last timestep.", ge=0, lt=1)] = 1e-2
    prediction_type: Annotated[Literal["epsilon", "sample", "v_prediction"], Meta(
        description="What the network predicts: the noise, the clean image, or a mixture of both.")] = "epsilon"
    num_inference_steps: Annotated[PositiveInteger, Meta(
        description="Sampling steps of validation and test, 1 to n_timestep.")] = 50


class BIDiffSRTrainOptions(SRTrainOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training of network_g to predict noise."""

    timestep_draw: Annotated[Literal["per_batch", "per_sample"], Meta(
        description="Each process's batch has one timestep (released code), or each sample its own.")] = "per_sample"
    unused_groups: Annotated[Literal["skip", "momentum"], Meta(
        description="Parameters of timestep groups that no sample needed stay as they are, or move on by their "
                    "decaying momentum (as with the torch of the released code).")] = "skip"


class BIDiffSRValOptions(ValOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Validation and test by sampling."""

    lpips_crop: Annotated[Literal["multiple", "border"], Meta(
        description="What crop_border means to calculate_lpips where the metric has no crop of its own: the bottom and "
                    "right are cut to a multiple of it (released code), or all sides by it.")] = "border"
    noise_draws: Annotated[NaturalNumber, Meta(
        description="Timesteps per image at which the error of the predicted noise is measured too, as noise_l1.")] = 0


class BIDiffSROptions(SROptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A diffusion network, trained or tested: BI-DiffSR, its binarization baselines, or SR3."""

    beta_schedule: Annotated[BetaScheduleOptions, Meta(description="The diffusion.")] = BetaScheduleOptions()
    train: Annotated[BIDiffSRTrainOptions | None, Meta(description="Training; needed to train.")] = None
    val: Annotated[BIDiffSRValOptions | None, Meta(description="Validation and testing.")] = None


def check(options: BIDiffSROptions, is_train: bool) -> list[Problem]:
    """Return (key, what is wrong) of what the types cannot say."""
    problems: list[Problem] = []
    schedule, network = options.beta_schedule, options.network_g.arguments
    total = network.get("total_step", TOTAL_STEP)
    if total != schedule.n_timestep:
        problems.append((("beta_schedule", "n_timestep"),
                         f"is {schedule.n_timestep}, but network_g:total_step is {total}; make them equal"))
    if schedule.num_inference_steps > schedule.n_timestep:
        problems.append((("beta_schedule", "num_inference_steps"),
                         f"must be an integer from 1 to n_timestep, {schedule.n_timestep}"))
    if schedule.schedule != "squaredcos_cap_v2" and not 0 < schedule.linear_start <= schedule.linear_end:
        problems.append((("beta_schedule", "linear_start"),
                         f"must be greater than 0 and at most linear_end, {schedule.linear_end:g}"))
    for key, data in options.datasets.items():
        if data.type == LR_SIZED:
            problems.append((("datasets", key, "type"),
                             f"is {LR_SIZED}, whose LR images keep their size; a diffusion network needs them enlarged "
                             "to HR size: set it to MultiPairedImageDataset"))
    multiple = 2 ** (len(network.get("channel_mults", CHANNEL_MULTS)) - 1)
    for key, data in options.datasets.items():
        if key == "train" and data.gt_size is not None and data.gt_size % multiple:
            problems.append((("datasets", key, "gt_size"),
                             f"is {data.gt_size}; the network halves patches {multiple.bit_length() - 1} times, so it "
                             f"must be a multiple of {multiple}"))
    if options.val is not None and options.val.noise_draws > schedule.n_timestep:
        problems.append((("val", "noise_draws"), f"must be at most n_timestep, {schedule.n_timestep}"))
    if options.val is not None and options.val.tile:
        problems.append((("val", "tile"), "must be 0: diffusion restores whole images, since tiles would not agree "
                                          "where they meet"))
    return problems


METHOD = Method(
    options=BIDiffSROptions,
    dead=("beta_schedule:guidance_scale", "beta_schedule:is_guidance"),
    check=check,
)
