"""Options of OSEDiff (``model_type: OSEDiffModel``): one-step diffusion on Stable Diffusion's UNet and VAE."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from basicsr_quant.options.component import Component
from basicsr_quant.options.method import Method, Problem
from basicsr_quant.options.optimization import OPTIMIZERS
from basicsr_quant.options.stage import StageOptions, stage_problems
from basicsr_quant.options.types import NaturalNumber, Options, PathOptions, PositiveInteger, TrainOptions
from basicsr_quant.registry import ARCHS, LOSSES

SIDE_MULTIPLE = 8
STAGE_KINDS = ("vae", "unet", "lora")


class TileOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Above which size parts of the pipeline run in tiles."""

    latent: Annotated[NaturalNumber, Meta(description="Side of the UNet's tiles, latent pixels; 0 = no tiles.")] = 96
    latent_overlap: Annotated[NaturalNumber, Meta(description="What the UNet's tiles share, latent pixels.")] = 32
    vae_encoder: Annotated[NaturalNumber, Meta(
        description="Side of the encoder's tiles in pixels, a multiple of 8; 0 = no tiles.")] = 1024
    vae_decoder: Annotated[NaturalNumber, Meta(
        description="Side of the decoder's tiles, latent pixels; 0 = no tiles.")] = 224


class PipelineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens around the networks."""

    process_size: Annotated[PositiveInteger, Meta(description="HR side that the networks were trained on.")] = 512
    enlarge: Annotated[Literal["pillow", "torch"], Meta(
        description="Bicubic enlargement of the input: by Pillow in 8 bits (released), or unrounded.")] = "torch"
    fit: Annotated[Literal["lanczos", "lanczos_exact", "pad"], Meta(
        description="Sides that are no multiples of 8: lanczos resizes to the next lower ones, and the output stays so "
                    "small (released); lanczos_exact resizes the output to scale times the input; pad mirrors and "
                    "crops, nothing is resized.")] = "pad"
    posterior: Annotated[Literal["mode", "sample"], Meta(
        description="What is taken of the encoder's distribution; sample (released) is drawn from manual_seed.",
    )] = "mode"
    rounding: Annotated[Literal["truncate", "once"], Meta(
        description="truncate: values are cut to 8 bits after the decoder and after the colour fix (released); once: "
                    "rounded when the image is written.")] = "once"
    color_fix: Annotated[Literal["adain", "wavelet", "nofix"], Meta(
        description="How the output gets the colours of the input.")] = "adain"
    round_trip: Annotated[bool, Meta(
        description="Leave the UNet out: with scale 1 and HR images as input, the ceiling that the VAE sets.")] = False
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Meta(description="Of the networks at test.")] = "fp32"
    tiles: Annotated[TileOptions, Meta(description="Tile sizes.")] = TileOptions()


class OneStepOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one diffusion step."""

    timestep: Annotated[int, Meta(description="t of the step; the method's is 999.", ge=0, le=999)] = 999
    scaled_input: Annotated[bool, Meta(
        description="The UNet sees sqrt(alpha_bar) z, where predicting zero returns the input, and starts there: for "
                    "training from scratch. The method's is false.")] = False
    prompt: Annotated[str, Meta(description="Text of the prompt embedding where it is computed.")] = ""
    random_context: Annotated[NaturalNumber, Meta(
        description="Tokens of a random constant embedding in place of a prompt's, for training from scratch; 0 = the "
                    "prompt's.")] = 0


class LoraOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank training; the encoder of the VAE and all of the UNet but its time embedding have factors."""

    rank_unet: Annotated[PositiveInteger, Meta(description="Rank in the UNet.")] = 4
    rank_vae: Annotated[PositiveInteger, Meta(description="Rank in the VAE's encoder.")] = 4
    alpha: Annotated[float, Meta(description="B A is multiplied by alpha / rank.", gt=0)] = 8
    train_conv_in: Annotated[bool, Meta(description="Train the UNet's conv_in in full as well.")] = True


class OSEDiffPathOptions(PathOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders, and the weights to start from or to test."""

    sd: Annotated[str | None, Meta(
        description="Stable Diffusion 2.1-base as a diffusers folder (unet, vae, and text_encoder and tokenizer unless "
                    "prompt_embedding is given).")] = None
    osediff: Annotated[str | None, Meta(
        description="OSEDiff's training: osediff.pkl, osediff.ckpt, or net_osediff_*.pth of a run here.")] = None
    prompt_embedding: Annotated[str | None, Meta(
        description="File of the constant prompt embedding (1, tokens, width); absent: computed from the text encoder.",
    )] = None
    text_encoder: Annotated[str | None, Meta(
        description="Folder that holds text_encoder and tokenizer; absent: path:sd.")] = None
    pretrain_network_unet: Annotated[str | None, Meta(description="UNet weights in place of path:sd's.")] = None
    pretrain_network_vae: Annotated[str | None, Meta(description="VAE weights in place of path:sd's.")] = None


class UnetStageOptions(StageOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stage that trains the UNet."""

    train_encoder: Annotated[bool, Meta(description="Train the VAE's encoder as well.")] = False


class StagesOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which stages a training has; they run in this order."""

    vae: Annotated[StageOptions | None, Meta(description="The whole VAE learns to reconstruct HR patches.")] = None
    unet: Annotated[UnetStageOptions | None, Meta(
        description="The whole UNet learns to restore; the VAE, or its decoder, rests.")] = None
    lora: Annotated[StageOptions | None, Meta(
        description="OSEDiff's training: low-rank factors in UNet and encoder learn to restore.")] = None


class OSEDiffTrainOptions(TrainOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training; losses are taken in the range [-1, 1]."""

    optim: Annotated[Component, Meta(description="Optimizer of all stages.",
                                     extra={"registry": OPTIMIZERS, "supplied": ("params",)})]
    pixel_opt: Annotated[Component, Meta(description="Loss between output and HR.", extra={"registry": LOSSES})]
    perceptual_opt: Annotated[Component | None, Meta(
        description="Perceptual loss between output and HR; absent: none.", extra={"registry": LOSSES})] = None
    kl_weight: Annotated[float, Meta(
        description="Weight of the mean KL divergence of a latent element from N(0, 1) (stage vae).", ge=0)] = 1e-6
    stages: Annotated[StagesOptions | None, Meta(
        description="Stages; absent: the stage lora, total_iter long.")] = None
    gradient_checkpointing: Annotated[bool, Meta(
        description="Recompute activations in the backward pass: less memory, more time.")] = False


class OSEDiffBaseOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every method on OSEDiff's pipeline has."""

    network_unet: Annotated[Component | None, Meta(
        description="The UNet; absent: that of path:sd, or of Stable Diffusion 2.1-base.",
        extra={"registry": ARCHS})] = None
    network_vae: Annotated[Component | None, Meta(
        description="The VAE; absent: that of path:sd, or of Stable Diffusion 2.1-base.",
        extra={"registry": ARCHS})] = None
    one_step: Annotated[OneStepOptions, Meta(description="The diffusion step.")] = OneStepOptions()
    pipeline: Annotated[PipelineOptions, Meta(description="Around the networks.")] = PipelineOptions()
    path: Annotated[OSEDiffPathOptions, Meta(description="Folders and files.")] = OSEDiffPathOptions()


class OSEDiffOptions(OSEDiffBaseOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """OSEDiff, training and test."""

    lora: Annotated[LoraOptions, Meta(description="Low-rank training.")] = LoraOptions()
    train: Annotated[OSEDiffTrainOptions | None, Meta(description="Training; needed to train.")] = None


def stages_of(train: OSEDiffTrainOptions) -> list[tuple[str, StageOptions]]:
    """Return (kind, stage) in their order."""
    if train.stages is None:
        return [("lora", StageOptions(iterations=train.total_iter))]
    return [(kind, stage) for kind in STAGE_KINDS if (stage := getattr(train.stages, kind)) is not None]


def pipeline_problems(options: OSEDiffBaseOptions) -> list[Problem]:
    """Return (key, what is wrong) of the blocks that every method on OSEDiff's pipeline has."""
    problems: list[Problem] = []
    tiles, path = options.pipeline.tiles, options.path
    if tiles.latent and tiles.latent_overlap >= tiles.latent:
        problems.append((("pipeline", "tiles", "latent_overlap"), f"must be below latent, {tiles.latent}"))
    if tiles.vae_encoder % SIDE_MULTIPLE:
        problems.append((("pipeline", "tiles", "vae_encoder"), f"must be a multiple of {SIDE_MULTIPLE}"))
    if options.val is not None and options.val.tile:
        problems.append((("val", "tile"), "must be 0 here; the pipeline has tiles of its own: pipeline:tiles"))
    if options.one_step.random_context and (path.prompt_embedding or path.text_encoder):
        problems.append((("one_step", "random_context"),
                         "must be 0 where path:prompt_embedding or path:text_encoder is given"))
    for key, data in options.datasets.items():
        if key == "train" and data.gt_size is not None and data.gt_size % SIDE_MULTIPLE:
            problems.append((("datasets", key, "gt_size"), f"must be a multiple of {SIDE_MULTIPLE}, for the VAE"))
    return problems


def check(options: OSEDiffOptions, is_train: bool) -> list[Problem]:
    """Return (key, what is wrong) of what the types cannot say."""
    problems = pipeline_problems(options)
    if options.train is not None:
        stages = [stage for _, stage in stages_of(options.train)]
        problems += stage_problems(stages, options.train.total_iter, "vae, unet or lora")
    return problems


METHOD = Method(options=OSEDiffOptions, check=check)
