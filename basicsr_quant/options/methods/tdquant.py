"""Options of 2DQuant (``model_type: TDQuantModel``): post-training quantization with learned clipping bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from basicsr_quant.options.component import Component
from basicsr_quant.options.method import Method, Problem
from basicsr_quant.options.optimization import OPTIMIZERS
from basicsr_quant.options.stage import StageOptions, stage_problems
from basicsr_quant.options.types import NaturalNumber, Options, PathOptions, PositiveInteger, TrainOptions
from basicsr_quant.registry import ARCHS, LOSSES, OBSERVERS

BitWidth = Annotated[int, Meta(ge=1, le=8)]
ObserverChoice = dict[str, Any] | str


class CalibrationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The patches that bounds are initialised on, where ``cali_data`` names no file."""

    train_mode: Annotated[bool, Meta(
        description="Calibrate with stochastic depth on, as the released code did.")] = False
    patches: Annotated[PositiveInteger, Meta(description="Number of LR patches.")] = 32
    patch_size: Annotated[PositiveInteger, Meta(description="Side of a patch in LR pixels.")] = 64
    batch_size: Annotated[PositiveInteger, Meta(description="Patches per forward pass.")] = 8
    seed: Annotated[NaturalNumber, Meta(description="Seed of the choice of patches.")] = 0
    order: Annotated[Literal["parallel", "sequential"], Meta(
        description="parallel: all tensors are those of the full-precision network; sequential: in order of execution, "
                    "each tensor computed with everything before it rounded.")] = "parallel"
    groups: Annotated[NaturalNumber, Meta(
        description="Sequential in so many groups of activations, within which nothing is rounded yet; 0: one by one, "
                    "all patches in one forward pass whatever batch_size says.")] = 0


class LearnOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How bounds are learned by distillation."""

    pixel_normalization: Annotated[Literal["once", "twice"], Meta(
        description="once: mean absolute error; twice: divided once more by the values of an image.")] = "once"
    feature_distance: Annotated[Literal["batch_broadcast", "unit_norm", "relative", "attention_transfer"], Meta(
        description="batch_broadcast: the released formula; unit_norm: the paper's; relative: squared error over the "
                    "teacher's squared norm; attention_transfer: that of maps of energy, as PaC has it.")] = "relative"
    relative_step: Annotated[bool, Meta(description="Bounds move in units of their calibrated width.")] = True
    minimum_width: Annotated[float, Meta(
        description="Fraction of the calibrated width that a learned range keeps; 0 = unchecked.", ge=0, lt=1)] = 0.05


class QuantOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is quantized and how."""

    hook_per_layer: Annotated[bool, Meta(description="Match the features of the four layers.")] = True
    hook_per_block: Annotated[bool, Meta(description="Match the features of all blocks instead.")] = False
    qkv_separation: Annotated[bool, Meta(description="Quantize q, k and v weights each on their own.")] = True
    quant_conv: Annotated[bool, Meta(description="Quantize the convolution at the end of each layer too.")] = False
    self_ensamble: Annotated[bool, Meta(
        description="Average over the eight flips and rotations (published spelling).")] = False
    fp_test: Annotated[bool, Meta(description="Test the full-precision network.")] = False
    bicubic: Annotated[bool, Meta(
        description="Test plain upscaling as published, which is bilinear in spite of the name.")] = False
    upscale_only: Annotated[Literal["none", "bilinear", "bicubic"], Meta(
        description="Test plain upscaling by the named filter.")] = "none"
    plan: Annotated[list[dict[str, Any]] | None, Meta(
        description="Lines `match: recipe | none`, first match wins; absent: the plan of the method.")] = None
    feature_taps: Annotated[list[str] | None, Meta(
        description="Modules whose outputs are matched instead of those of the hook_per_* keys.")] = None
    calibration: Annotated[CalibrationOptions, Meta(description="Calibration patches.")] = CalibrationOptions()
    weight_per: Annotated[Literal["tensor", "channel"], Meta(
        description="One pair of bounds for a weight, or one for each output channel; lines of a plan may differ.")
    ] = "tensor"
    weight_observer: Annotated[ObserverChoice, Meta(
        description="How bounds of weights are found.", extra={"registry": OBSERVERS})] = "dobi"
    activation_observer: Annotated[ObserverChoice, Meta(
        description="How bounds of activations are found.", extra={"registry": OBSERVERS})] = "dobi"
    one_sided_observer: Annotated[ObserverChoice | None, Meta(
        description="The same for softmax maps and GELU outputs; absent: as activation_observer.",
        extra={"registry": OBSERVERS})] = None
    allow_degenerate_bounds: Annotated[bool, Meta(
        description="Warn, rather than refuse, where the bounds of a quantizer are equal or crossed.")] = False
    learn: Annotated[LearnOptions, Meta(description="How bounds are learned.")] = LearnOptions()


class TeacherPathOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The full-precision network, which is teacher and starting point."""

    pretrain_network_FP: Annotated[str | None, Meta(description="Full-precision weights.")] = None
    strict_load_FP: Annotated[bool, Meta(description="Refuse missing and unexpected keys.")] = True


class TDQuantPathOptions(PathOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders, and the quantized weights to start from or to test."""

    pretrain_network_Q: Annotated[str | None, Meta(
        description="Quantized weights; a full-precision file is quantized after calibration.")] = None
    strict_load_Q: Annotated[bool, Meta(description="Refuse missing and unexpected keys.")] = True


class StagesOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which stages a training has; they run in this order."""

    activations: Annotated[StageOptions | None, Meta(description="The bounds of activations learn.")] = None
    weights: Annotated[StageOptions | None, Meta(description="The bounds of weights learn.")] = None


class TDQuantTrainOptions(TrainOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Learning of the bounds."""

    optim_bound: Annotated[Component, Meta(description="Optimizer of the bounds.",
                                           extra={"registry": OPTIMIZERS, "supplied": ("params",)})]
    pixel_opt: Annotated[Component, Meta(description="Loss between the outputs of student and teacher.",
                                         extra={"registry": LOSSES})]
    feature_loss: Annotated[Component | None, Meta(
        description="Loss between the features of student and teacher; absent: none.",
        extra={"registry": LOSSES})] = None
    stages: Annotated[StagesOptions | None, Meta(
        description="Stages; absent: all bounds learn together, total_iter long.")] = None


class TDQuantOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """2DQuant, training and test."""

    bit: Annotated[BitWidth | None, Meta(
        description="Bit-width of weights and activations; absent at test: that of the checkpoint.")] = None
    cali_data: Annotated[str | None, Meta(
        description="Calibration file; absent: patches of the training set.")] = None
    cali_data_save_path: Annotated[str | None, Meta(description="Where a calibration file is written.")] = None
    quant: Annotated[QuantOptions, Meta(description="What is quantized and how.")] = QuantOptions()
    network_Q: Annotated[Component, Meta(description="The network.", extra={"registry": ARCHS})]
    pathFP: Annotated[TeacherPathOptions, Meta(description="The full-precision network.")] = TeacherPathOptions()
    path: Annotated[TDQuantPathOptions, Meta(description="Folders and files.")] = TDQuantPathOptions()
    train: Annotated[TDQuantTrainOptions | None, Meta(description="Training; needed to train.")] = None


def stages_of(train: TDQuantTrainOptions) -> list[tuple[str, StageOptions]]:
    """Return (whose bounds learn, stage) in their order."""
    if train.stages is None:
        return [("all", StageOptions(iterations=train.total_iter))]
    pairs = (("activations", train.stages.activations), ("weights", train.stages.weights))
    return [(side, stage) for side, stage in pairs if stage is not None]


def check(options: TDQuantOptions, is_train: bool) -> list[Problem]:
    """Return (key, what is wrong) of what the types cannot say."""
    problems: list[Problem] = []
    quant = options.quant
    if options.train is not None and options.train.feature_loss is not None and quant.feature_taps is None \
            and quant.hook_per_layer == quant.hook_per_block:
        problems.append((("quant", "hook_per_layer"),
                         "and hook_per_block: exactly one must be true when train:feature_loss is set"))
    if options.train is not None and options.train.feature_loss is not None \
            and options.train.feature_loss.type != "MSELoss":
        problems.append((("train", "feature_loss", "type"),
                         "must be MSELoss; which distance is squared says quant:learn:feature_distance"))
    if options.train is not None and options.train.feature_loss is not None \
            and options.train.feature_loss.arguments.get("reduction", "mean") != "mean":
        problems.append((("train", "feature_loss", "reduction"), "must be mean, which the distances are"))
    if options.train is not None:
        stages = [stage for _, stage in stages_of(options.train)]
        problems += stage_problems(stages, options.train.total_iter, "activations or weights")
    if quant.bicubic and quant.upscale_only == "bicubic":
        problems.append((("quant", "upscale_only"),
                         "contradicts quant:bicubic, which is bilinear as published; leave one of the two out"))
    if quant.calibration.groups and quant.calibration.order == "parallel":
        problems.append((("quant", "calibration", "groups"), "needs quant:calibration:order=sequential"))
    if is_train and options.bit is None and quant.plan is None and options.cali_data_save_path is None:
        problems.append((("bit",), "is missing; set it to the bit-width to train, for example --force_yml bit=4"))
    return problems


METHOD = Method(
    options=TDQuantOptions,
    dead=("network_g", "quant:awe", "quant:better", "train:optim_bit"),
    check=check,
)
