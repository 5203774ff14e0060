"""Options of one stage of PassionSR's distillation, or of a method that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from basicsr_quant.options.component import Component
from basicsr_quant.options.optimization import OPTIMIZERS, SCHEDULERS
from basicsr_quant.options.types import NaturalNumber
from basicsr_quant.registry import SELECTORS

LOSSES_OF = {"encoder": ("latent",), "unet": ("noise", "clean_latent", "image"), "decoder": ("image",),
             "all": ("image",)}
BY_BLOCK = ("rounding", "activation_bounds")


class StageOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of the distillation."""

    component: Annotated[Literal["encoder", "unet", "decoder", "all"], Meta(description="Which part learns.")]
    learn: Annotated[str, Meta(
        description="What of it learns; rounding: whether each weight is rounded up or down (AdaRound, needs "
                    "per_block); low_rank_changes: a change B A of each weight, and the bounds of activations.",
        extra={"registry": SELECTORS})]
    loss: Annotated[Literal["latent", "noise", "clean_latent", "image"] | None, Meta(
        description="What is compared: the encoder's latent, the UNet's noise, the latent after the step, or the "
                    "decoded image; absent only with per_block.")] = None
    per_block: Annotated[NaturalNumber, Meta(
        description="Blocks learn one after another, this many iterations each, from their outputs in the teacher's "
                    "run; 0 = the part learns as a whole.")] = 0
    blocks: Annotated[list[str] | None, Meta(
        description="With per_block: patterns of names, unet. or vae. in front, of what is one block; all other layers "
                    "are blocks by themselves. Absent: resnets, transformer blocks, the VAE's attentions.")] = None
    rank: Annotated[NaturalNumber, Meta(description="Of A and B, for learn: low_rank_changes.")] = 0
    input: Annotated[Literal["teacher", "student"], Meta(
        description="Whose result the part gets as input: of the teacher, or of the parts learned so far.",
    )] = "student"
    target: Annotated[Literal["teacher", "hr"], Meta(description="What the result is compared with.")] = "teacher"
    bounds: Annotated[Literal["fixed", "renewed", "recalibrated"], Meta(
        description="fixed: as they are; renewed: set to the extremes of the present batch at each step (at the end "
                    "from all images, if no later stage of the part takes them over); recalibrated: set from all "
                    "images when the stage begins.")] = "fixed"
    iterations: Annotated[NaturalNumber, Meta(
        description="Optimizer steps; 0 = an equal share of what total_iter leaves, or train:epochs.")] = 0
    optim: Annotated[Component | None, Meta(
        description="In place of train:optim.", extra={"registry": OPTIMIZERS, "supplied": ("params",)})] = None
    decay: Annotated[float, Meta(
        description="Factor on the learning rate from the middle of the stage on.", gt=0, le=1)] = 1.0
    scheduler: Annotated[Component | None, Meta(
        description="In place of decay and of train:scheduler; CosineAnnealingLR without T_max ends with the stage.",
        extra={"registry": SCHEDULERS})] = None


def stage_problems(stage: StageOptions, only_unet: bool) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) of what the types cannot say.

    Args:
        stage: Any.
        only_unet: Whether the VAE stays in full precision.
    """
    if stage.per_block:
        if stage.learn not in BY_BLOCK:
            yield "learn", f"of a stage with per_block must be one of {', '.join(BY_BLOCK)}"
        if stage.bounds != "fixed":
            yield "bounds", "of a stage with per_block must be fixed"
        if stage.iterations:
            yield "iterations", "must be 0 with per_block"
        if stage.component == "all":
            yield "component", "of a stage with per_block must be encoder, unet or decoder"
    else:
        if stage.loss not in LOSSES_OF[stage.component]:
            yield "loss", f"of the {stage.component} must be one of {', '.join(LOSSES_OF[stage.component])}"
        if stage.learn == "rounding":
            yield "learn", "rounding needs per_block, the iterations of each block"
        if stage.blocks is not None:
            yield "blocks", "needs per_block, the iterations of each block"
    if stage.target == "hr" and stage.loss != "image":
        yield "target", "hr needs loss image"
    if (stage.learn == "low_rank_changes") != bool(stage.rank):
        yield "rank", "must be given for learn low_rank_changes, and for nothing else"
    if only_unet and stage.component not in ("unet", "all"):
        yield "component", "is in full precision with quant:only_unet"
