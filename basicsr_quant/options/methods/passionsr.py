"""Options of PassionSR (``model_type: PassionSRModel``): OSEDiff's UNet and VAE at low bit-widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from basicsr_quant.options.component import Component
from basicsr_quant.options.method import Method, Problem
from basicsr_quant.options.methods.osediff import OSEDiffBaseOptions, OSEDiffPathOptions, pipeline_problems
from basicsr_quant.options.methods.passionsr_stages import StageOptions, stage_problems
from basicsr_quant.options.optimization import OPTIMIZERS
from basicsr_quant.options.types import NaturalNumber, PositiveInteger, TrainOptions
from basicsr_quant.registry import LOSSES, OBSERVERS, QUANTIZERS

BitWidth = Annotated[int, Meta(ge=1, le=8)]
ObserverChoice = dict[str, Any] | str
StageName = Annotated[str, Meta(pattern=r"^\w+$")]

FIXED_PATCHES = "CentralPatchDataset"
ORDERS = {
    True: ("alone_let", "alone_bounds"),
    False: ("encoder_let", "encoder_bounds", "unet_let", "unet_bounds", "decoder_let", "decoder_bounds"),
}


class PartOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the two networks."""

    weight_bits: Annotated[BitWidth | None, Meta(description="In place of quant:weight_bits.")] = None
    activation_bits: Annotated[BitWidth | None, Meta(description="In place of quant:activation_bits.")] = None
    split: Annotated[Literal["half", "concat", "none"], Meta(
        description="half: every weight and input is cut in the middle, each half with bounds of its own (released, "
                    "UNet); concat: only layers that read features joined with a shortcut, at the joint.")] = "none"


class LetOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The learnable equivalent transformation of the layers' inputs."""

    enabled: Annotated[bool, Meta(description="Transform the inputs.")] = True
    alpha: Annotated[float, Meta(description="Exponent of the initial scales.", ge=0, le=1)] = 0.3
    padding: Annotated[Literal["zero_after", "transformed_zero"], Meta(
        description="Of a Conv2d: zeros behind the rounding (released), or transformed zeros before it.",
    )] = "zero_after"
    offset_sign: Annotated[Literal["minus", "plus"], Meta(
        description="minus: (x - o) / s; plus: what the released code and weights have in Linear layers, off by 2 W o.",
    )] = "minus"
    vector_maximum: Annotated[Literal["channel", "tensor"], Meta(
        description="Initial scales of inputs (B, C): maxima per channel, or one for all (released).")] = "channel"


class SmoothOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Factors that balance the operands of the UNet's attention products."""

    query_key: Annotated[bool, Meta(description="A factor per feature between queries and keys.")] = True
    map_value: Annotated[bool, Meta(
        description="A factor per key token between softmax map and values (released, and in its weights); ties the "
                    "model to latents of pipeline:tiles:latent squared. Needs query_key.")] = False
    alpha: Annotated[float, Meta(description="Exponent of the initial factors.", ge=0, le=1)] = 0.3


class CalibrationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pass over the training images that comes before the stages."""

    order: Annotated[Literal["scales_first", "one_pass"], Meta(
        description="scales_first: all scales over all images, then all bounds; one_pass: both together, everything "
                    "rounded, an incomplete last batch left out (released).")] = "scales_first"
    batch_size: Annotated[PositiveInteger, Meta(description="Images in one forward pass.")] = 4
    images: Annotated[NaturalNumber, Meta(
        description="How many of the training images are used, here and in the stages; 0 = all.")] = 0
    scale_momentum: Annotated[Annotated[float, Meta(ge=0, lt=1)] | None, Meta(
        description="Share of the old scales that each further batch keeps; absent: maxima over all batches (one_pass: "
                    "0.9).")] = None


class LearnOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the stages learn."""

    relative_step: Annotated[bool, Meta(
        description="Bounds move in units of their range, logarithms of scales in units of 1.")] = True
    minimum_width: Annotated[float, Meta(
        description="Fraction of its first width, or value, that a learned range, or scale, keeps; 0 = unchecked.",
        ge=0, lt=1)] = 0.05
    gradient_memory: Annotated[Literal["step", "epoch"], Meta(
        description="step: each step has its own gradient; epoch: the sum of all since the epoch began (released).",
    )] = "step"
    posterior_noise: Annotated[Literal["shared", "independent"], Meta(
        description="With pipeline:posterior=sample: whether student and teacher draw the same noise for an image.",
    )] = "shared"


class QuantOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is quantized and how."""

    weight_bits: Annotated[BitWidth, Meta(
        description="Of weights and biases; six layers at the networks' ends keep 8.")] = 8
    activation_bits: Annotated[BitWidth, Meta(description="Of inputs and of the operands of products.")] = 8
    only_unet: Annotated[bool, Meta(description="Leave the VAE in full precision.")] = False
    unet: Annotated[PartOptions, Meta(description="The UNet.")] = PartOptions()
    vae: Annotated[PartOptions, Meta(description="The VAE.")] = PartOptions()
    plan: Annotated[list[dict[str, Any]] | None, Meta(
        description="Lines `match: recipe | none`, names with unet. or vae. in front, first match wins; absent: the "
                    "plan of the method.")] = None
    let: Annotated[LetOptions, Meta(description="Equivalent transformation.")] = LetOptions()
    fold_norms: Annotated[bool, Meta(
        description="At test, a norm whose output one layer alone reads transforms it: gamma / s, (beta - o) / s.",
    )] = True
    products: Annotated[bool, Meta(description="Quantize the products of the UNet's attentions.")] = True
    smooth: Annotated[SmoothOptions, Meta(description="Smoothing of these products.")] = SmoothOptions()
    grid: Annotated[dict[str, Any] | str | None, Meta(
        description="Of all quantizers, in place of int_zero_point.", extra={"registry": QUANTIZERS})] = None
    zero_point_gradient: Annotated[Literal["full", "detached"], Meta(
        description="Whether gradients of the bounds go through the zero point (released: detached).")] = "full"
    weight_observer: Annotated[ObserverChoice, Meta(
        description="How bounds of weights are found.", extra={"registry": OBSERVERS})] = "minmax"
    activation_observer: Annotated[ObserverChoice, Meta(
        description="How bounds of inputs are found.", extra={"registry": OBSERVERS})] = "minmax"
    product_observer: Annotated[ObserverChoice | None, Meta(
        description="The same for operands of products; absent: as activation_observer.",
        extra={"registry": OBSERVERS})] = None
    allow_degenerate_bounds: Annotated[bool, Meta(
        description="Warn, rather than refuse, where the bounds of a quantizer are equal or crossed.")] = False
    calibration: Annotated[CalibrationOptions, Meta(description="Before the stages.")] = CalibrationOptions()
    learn: Annotated[LearnOptions, Meta(description="In the stages.")] = LearnOptions()


class PassionSRPathOptions(OSEDiffPathOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders; the full-precision weights, and the quantization that belongs to them."""

    unet_ckpt: Annotated[str | None, Meta(
        description="Quantization of the UNet: net_unet_*.pth of a run here, or a released file; needed at test.",
    )] = None
    vae_ckpt: Annotated[str | None, Meta(description="The same of the VAE; needed unless quant:only_unet.")] = None


class PassionSRTrainOptions(TrainOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stages."""

    total_iter: Annotated[NaturalNumber, Meta(
        description="Optimizer steps of all stages together; 0 = epochs says how long each stage is.")] = 0
    epochs: Annotated[PositiveInteger, Meta(
        description="Passes over the training images in a stage, if neither it nor total_iter says how long.")] = 2
    optim: Annotated[Component, Meta(description="Optimizer of all stages.",
                                     extra={"registry": OPTIMIZERS, "supplied": ("params",)})]
    pixel_opt: Annotated[Component, Meta(description="Loss between result and target.", extra={"registry": LOSSES})]
    stages: Annotated[dict[StageName, StageOptions], Meta(description="Name -> stage.")] = {}
    order: Annotated[list[str] | None, Meta(
        description="Names of the stages that run, in this order; [] = calibration alone; absent: encoder, UNet and "
                    "decoder, each first _let (unless nothing is transformed) then _bounds; with quant:only_unet "
                    "alone_let, alone_bounds.")] = None
    activation_checkpointing: Annotated[bool, Meta(
        description="Recompute activations in the backward pass: less memory, more time.")] = False


class PassionSROptions(OSEDiffBaseOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PassionSR, training and test."""

    quant: Annotated[QuantOptions, Meta(description="What is quantized and how.")] = QuantOptions()
    path: Annotated[PassionSRPathOptions, Meta(description="Folders and files.")] = PassionSRPathOptions()
    train: Annotated[PassionSRTrainOptions | None, Meta(description="Training; needed to train.")] = None


def stages_of(options: PassionSROptions) -> list[tuple[str, StageOptions]]:
    """Return (name, stage) in the order in which they run."""
    train = options.train
    if train is None:
        return []
    return [(name, train.stages[name]) for name in _order(options, train) if name in train.stages]


def _order(options: PassionSROptions, train: PassionSRTrainOptions) -> list[str]:
    """Return the names of ``train:order``, or those of the method that have something to learn."""
    if train.order is not None:
        return train.order
    quant, names = options.quant, ORDERS[options.quant.only_unet]
    if quant.let.enabled or quant.smooth.query_key or quant.plan is not None:
        return list(names)
    return [name for name in names if name not in train.stages or train.stages[name].learn != "transformations"]


def lengths_of(options: PassionSROptions, epoch: int, blocks: Mapping[str, int] | None = None) -> list[int]:
    """Return the iterations of each stage.

    Args:
        options: With a ``train`` block.
        epoch: Iterations that go once through the training images.
        blocks: Name of each stage with ``per_block`` -> number of its blocks.
    """
    train = options.train
    assert train is not None
    stages = stages_of(options)
    whole = [stage.iterations for _, stage in stages if not stage.per_block]
    share = train.epochs * epoch
    if train.total_iter and 0 in whole:
        share = (train.total_iter - sum(whole)) // whole.count(0)
    return [stage.per_block * (blocks or {})[name] if stage.per_block else stage.iterations or share
            for name, stage in stages]


def check(options: PassionSROptions, is_train: bool) -> list[Problem]:
    """Return (key, what is wrong) of what the types cannot say."""
    problems = pipeline_problems(options)
    if options.quant.smooth.map_value and not options.quant.smooth.query_key:
        problems.append((("quant", "smooth", "map_value"), "needs quant:smooth:query_key=true"))
    if options.quant.smooth.map_value and not options.pipeline.tiles.latent:
        problems.append((("pipeline", "tiles", "latent"),
                         "must say which latents quant:smooth:map_value is for, 64 as released"))
    if "calibration" in options.datasets:
        problems.append((("datasets", "calibration"), "is not read; datasets:train is calibrated on"))
    for key, data in options.datasets.items():
        if key == "train" and data.type != FIXED_PATCHES:
            problems.append((("datasets", key, "type"),
                             f"must be {FIXED_PATCHES}: the target of an image is computed once"))
    if options.train is not None:
        problems += _stage_problems(options, options.train)
    return problems


def _stage_problems(options: PassionSROptions, train: PassionSRTrainOptions) -> list[Problem]:
    names = _order(options, train)
    for name in names:
        if name not in train.stages:
            return [(("train", "order"), f"names the stage '{name}', which train:stages does not describe")]
    if len(set(names)) < len(names):
        return [(("train", "order"), "must name no stage twice")]
    problems: list[Problem] = []
    for name in names:
        problems += [(("train", "stages", name, key), text)
                     for key, text in stage_problems(train.stages[name], options.quant.only_unet)]
        if train.ema_decay and (train.stages[name].per_block or train.stages[name].component == "all"):
            problems.append((("train", "ema_decay"), f"must be 0 with the stage '{name}'"))
    given = [train.stages[name].iterations for name in names if not train.stages[name].per_block]
    shared, left = given.count(0), train.total_iter - sum(given)
    if train.total_iter and (left < shared or (left % shared if shared else left)):
        problems.append((("train", "total_iter"), f"is {train.total_iter}, which {sum(given)} iterations and {shared} "
                                                  "equal shares do not make up; correct it, or set it to 0"))
    return problems


METHOD = Method(options=PassionSROptions, check=check)
