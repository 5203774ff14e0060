"""The typed options that all methods share; every key, its type, its range and its meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from basicsr_quant.options.component import Component, MetricOptions
from basicsr_quant.options.optimization import SCHEDULERS
from basicsr_quant.registry import DATASETS, METRICS

PositiveInteger = Annotated[int, Meta(ge=1)]
NaturalNumber = Annotated[int, Meta(ge=0)]
DatasetKey = Annotated[str, Meta(pattern=r"^(train|val(_\w+)?|test(_\w+)?|calibration)$")]
Metric = Annotated[MetricOptions, Meta(extra={"registry": METRICS})]
Mode = Literal["released", "paper", "corrected"]


class IoBackend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where images are read from."""

    type: Annotated[Literal["disk", "lmdb"], Meta(description="Folders, or LMDB in BasicSR's layout.")] = "disk"


class DatasetOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One data set; the part of its key in front of ``_`` is its phase."""

    name: Annotated[str, Meta(description="Name in tables, logs and result folders.", min_length=1)]
    type: Annotated[str, Meta(description="How samples are made.",
                              extra={"registry": DATASETS})] = "PairedImageDataset"
    dataroot_gt: Annotated[str | None, Meta(description="Folder (or LMDB) of HR images; absent: no metrics.")] = None
    dataroot_lq: Annotated[str | None, Meta(description="Folder (or LMDB) of LR images.")] = None
    filename_tmpl: Annotated[str, Meta(description="LR name made from the HR stem.", pattern=r"\{\}")] = "{}"
    io_backend: Annotated[IoBackend, Meta(description="Where images are read from.")] = IoBackend()
    gt_size: Annotated[PositiveInteger | None, Meta(
        description="Side of the HR training patch in pixels, a multiple of scale.")] = None
    use_hflip: Annotated[bool, Meta(description="Random horizontal flips.")] = True
    use_rot: Annotated[bool, Meta(description="Random vertical flips and transposes.")] = True
    use_shuffle: Annotated[bool, Meta(description="Shuffle the training order.")] = True
    num_worker_per_gpu: Annotated[NaturalNumber, Meta(description="Loader workers per process, in training.")] = 0
    batch_size_per_gpu: Annotated[PositiveInteger, Meta(description="Images per process and step.")] = 1
    dataset_enlarge_ratio: Annotated[PositiveInteger, Meta(description="Times a set counts within one epoch.")] = 1
    pin_memory: Annotated[bool, Meta(description="Page-locked training batches (with CUDA only).")] = True
    prefetch_factor: Annotated[PositiveInteger, Meta(description="Batches each worker prepares ahead.")] = 2
    optional: Annotated[bool, Meta(description="Skip the set, with a line, when its folder is absent.")] = False
    exclude_last: Annotated[NaturalNumber, Meta(description="Leave out the last n names, sorted.")] = 0
    only_last: Annotated[NaturalNumber, Meta(description="Take only the last n names, sorted; 0 = all.")] = 0
    crop_size: Annotated[PositiveInteger | None, Meta(
        description="Validate on the centre crop of this HR size in pixels, a multiple of scale.")] = None
    max_pixels: Annotated[PositiveInteger, Meta(description="Refuse images with more pixels.")] = 2**27


class PathOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders of the run and files that it starts from."""

    resume_state: Annotated[str | None, Meta(description="Training state to continue from; not read at test.")] = None
    experiments_root: Annotated[str, Meta(description="Folder of training runs.")] = "experiments"
    results_root: Annotated[str, Meta(description="Folder of test runs.")] = "results"
    tb_root: Annotated[str, Meta(description="Folder of TensorBoard runs.")] = "tb_logger"


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and how to train."""

    total_iter: Annotated[PositiveInteger, Meta(description="Optimizer steps.")]
    warmup_iter: Annotated[int, Meta(description="Steps of linear warm-up; -1 = none.", ge=-1)] = -1
    precision: Annotated[Literal["fp32", "bf16", "fp16", "fp64"], Meta(
        description="bf16 and fp16: autocast; fp64: the whole network.")] = "fp32"
    ema_decay: Annotated[float, Meta(description="Decay of the weight average; 0 = none.", ge=0, lt=1)] = 0.0
    gradient_clip: Annotated[float, Meta(description="Largest gradient norm; 0 = unlimited.", ge=0)] = 0.0
    accumulation: Annotated[PositiveInteger, Meta(description="Batches per optimizer step.")] = 1
    compile: Annotated[bool, Meta(description="torch.compile the trained network.")] = False
    on_nan: Annotated[Literal["stop", "skip"], Meta(description="What a loss that is not finite leads to.")] = "stop"
    scheduler: Annotated[Component | None, Meta(
        description="Learning-rate schedule; absent: constant. CosineAnnealingLR without T_max ends at total_iter.",
        extra={"registry": SCHEDULERS, "complete": True})] = None


class ValOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Validation during training, and testing."""

    val_freq: Annotated[PositiveInteger, Meta(description="Iterations between validations.")] = 5000
    save_img: Annotated[bool, Meta(description="Write the output images.")] = False
    test_sets: Annotated[list[str] | None, Meta(
        description="Names of the test sets to run; absent: all that are there.")] = None
    suffix: Annotated[str | None, Meta(description="End of the names of output images; absent: the run's name.")] = None
    pbar: Annotated[bool, Meta(description="Show a progress bar.")] = True
    metrics: Annotated[dict[str, Metric], Meta(description="Free name -> metric.")] = {}
    self_ensemble: Annotated[bool, Meta(description="Average over the eight flips and rotations.")] = False
    backend: Annotated[Literal["auto", "simulate", "reference", "onednn", "native", "native_bf16"], Meta(
        description="test.py: what executes quantized layers; all but simulate compute on the codes.")] = "simulate"
    tile: Annotated[NaturalNumber, Meta(description="Side of a tile in LR pixels; 0 = the whole image at once.")] = 0
    tile_overlap: Annotated[NaturalNumber, Meta(description="Overlap of tiles in LR pixels.")] = 32


class WandbOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights & Biases; never stops a run."""

    project: Annotated[str | None, Meta(description="Project; absent: off.")] = None
    resume_id: Annotated[str | None, Meta(description="Run to continue.")] = None


class LoggerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logging and saving."""

    print_freq: Annotated[PositiveInteger, Meta(description="Iterations between log lines.")] = 100
    save_checkpoint_freq: Annotated[PositiveInteger, Meta(description="Iterations between checkpoints.")] = 5000
    use_tb_logger: Annotated[bool, Meta(description="Write TensorBoard files.")] = True
    wandb: Annotated[WandbOptions | None, Meta(description="Weights & Biases.")] = None


class DistributedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Used with ``--launcher pytorch`` or ``slurm``."""

    backend: Annotated[Literal["nccl", "gloo"], Meta(description="nccl without CUDA becomes gloo.")] = "nccl"
    port: Annotated[int, Meta(description="Port of the first process (slurm).", ge=1, le=65535)] = 29500


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every method's option file holds; ``model_type`` chooses the subclass."""

    name: Annotated[str, Meta(description="Name of the run and of its folder.", min_length=1)]
    model_type: Annotated[str, Meta(description="The method.")]
    mode: Annotated[Mode, Meta(description="Preset that fills keys which the file leaves out.")] = "released"
    scale: Annotated[PositiveInteger, Meta(description="Enlargement factor.")]
    num_gpu: Annotated[NaturalNumber | Literal["auto"], Meta(description="0 = CPU; auto = all there are.")] = "auto"
    gpu: Annotated[NaturalNumber | None, Meta(description="CUDA device index of a single-process run.")] = None
    manual_seed: Annotated[NaturalNumber, Meta(description="Seed of every random draw.")] = 0
    deterministic: Annotated[bool, Meta(description="Deterministic kernels only.")] = False
    datasets: Annotated[dict[DatasetKey, DatasetOptions], Meta(
        description="train, val, val_N, test_N, calibration -> data set.")] = {}
    path: Annotated[PathOptions, Meta(description="Folders and files.")] = PathOptions()
    train: Annotated[TrainOptions | None, Meta(description="Training; needed to train.")] = None
    val: Annotated[ValOptions | None, Meta(description="Validation and testing.")] = None
    logger: Annotated[LoggerOptions, Meta(description="Logging and saving.")] = LoggerOptions()
    dist_params: Annotated[DistributedOptions, Meta(description="Process group.")] = DistributedOptions()
    find_unused_parameters: Annotated[bool, Meta(description="Let DDP search for unused parameters.")] = False


def datasets_of_phase(options: Options, phase: str) -> list[tuple[str, DatasetOptions]]:
    """Return (key, data set) of every data set of ``phase`` (train, val, test or calibration), in the file's order."""
    return [(key, dataset) for key, dataset in options.datasets.items() if key.partition("_")[0] == phase]


def arguments_of(component: Component) -> dict[str, Any]:
    """Return a component as the block of a file: ``{type: ..., **arguments}``, a metric with its ``better``."""
    better = {"better": component.better} if isinstance(component, MetricOptions) else {}
    return {"type": component.type, **component.arguments, **better}
