"""``model_type: TDQuantModel``: 2DQuant, post-training quantization by bound search and distillation."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from basicsr_quant.archs.build import build_network
from basicsr_quant.archs.published.table import importer, quantized_exporter, quantized_importer
from basicsr_quant.archs.upscale import Upscale
from basicsr_quant.data.build import build_dataset
from basicsr_quant.data.calibration import CalibrationSet, calibration_patches, load_calibration_file
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.io.progress import reporter
from basicsr_quant.io.weights import apply_state_dict, load_state_dict
from basicsr_quant.models.base import RestorationModel, Stage, forward_draws
from basicsr_quant.models.step import DistillationStep
from basicsr_quant.models.tdquant_plan import feature_taps, plan_of
from basicsr_quant.options.methods.tdquant import TDQuantOptions, stages_of
from basicsr_quant.options.optimization import stage_optimizer, stage_schedule
from basicsr_quant.options.types import datasets_of_phase
from basicsr_quant.quant.bounds import RelativeSteps, bound_parameters, order_keeper, quantizers_of, range_scales
from basicsr_quant.quant.calibrate import calibrate, check_bounds, named_quantizers
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.prepare import prepare
from basicsr_quant.quant.sequential import calibrate_in_order
from basicsr_quant.registry import LOSSES

logger = logging.getLogger("basicsr_quant")

CALIBRATION_CACHE = "keydata"
SIMULATED = "execution is simulated: values are rounded to the low-bit grid, products run in floating point"


class TDQuantModel(RestorationModel):
    """Quantize ``network_Q``: calibrate its bounds, then learn them from the full-precision network.

    The teacher is built from ``network_Q`` too. At test neither teacher nor calibration data are needed.
    """

    options: TDQuantOptions
    needs_ground_truth = False

    def __init__(self, options: TDQuantOptions, device: torch.device) -> None:
        super().__init__(options, device)
        double = options.train is not None and options.train.precision == "fp64"
        self.dtype = torch.float64 if double else torch.float32
        self._network: nn.Module = nn.Identity()
        self._teacher: nn.Module | None = None
        self._calibrated = False
        self._calibration_digest = ""
        self._plan = QuantPlan(())

    @classmethod
    def unprepared(cls, options: TDQuantOptions) -> nn.Module:
        """Return the network in full precision without weights."""
        return build_network(options.network_Q.type, options.network_Q.arguments).eval()

    @classmethod
    def skeleton(cls, options: TDQuantOptions) -> nn.Module:
        """Return the prepared network without weights."""
        network = cls.unprepared(options)
        size = options.quant.calibration.patch_size
        return prepare(network, plan_of(options), torch.zeros(1, 3, size, size))

    @property
    def network(self) -> nn.Module:
        """The network that restores images."""
        return self._network

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """Checkpoints hold ``net_Q``."""
        return {"Q": self._network}

    @property
    def trains_in_train_mode(self) -> bool:
        """Bounds are learned in eval mode."""
        return False

    @property
    def self_ensemble(self) -> bool:
        """Asked for by ``val:self_ensemble``, or by the published ``quant:self_ensamble``."""
        return super().self_ensemble or self.options.quant.self_ensamble

    def _build(self) -> nn.Module:
        component = self.options.network_Q
        return build_network(component.type, component.arguments).to(self.device, self.dtype).eval()

    def _full_precision(self, path: str | Path | None, strict: bool = True) -> nn.Module:
        """Return the network with full-precision weights from a file; without one, a spandrel network has its own."""
        network = self._build()
        if path is None and self.options.network_Q.type == "spandrel":
            return network
        if path is None:
            raise UserError("pathFP:pretrain_network_FP is missing; name the full-precision weights to quantize")
        state = importer(self.options.network_Q)(load_state_dict(path))
        apply_state_dict(network, state, path, strict)
        return network

    def _prepared(self, network: nn.Module, bits: int | None = None) -> nn.Module:
        size = self.options.quant.calibration.patch_size
        example = torch.zeros(1, 3, size, size, device=self.device, dtype=self.dtype)
        self._plan = plan_of(self.options, bits)
        return prepare(network, self._plan, example).to(self.dtype).eval()

    def load_pretrained(self, training: bool) -> None:
        """Load what the options name: quantized weights, or full-precision weights to be quantized."""
        options, quant = self.options, self.options.quant
        quantized = options.path.pretrain_network_Q
        if not training and (quant.bicubic or quant.upscale_only != "none"):
            mode: Literal["bilinear", "bicubic"] = "bicubic" if quant.upscale_only == "bicubic" else "bilinear"
            self._network = Upscale(options.scale, mode).to(self.device)
        elif not training and quant.fp_test:
            self._network = self._full_precision(options.pathFP.pretrain_network_FP or quantized)
        elif quantized is not None:
            self._load_quantized(quantized)
        elif training:
            self._network = self._prepared(copy.deepcopy(self._load_teacher()))
        elif options.network_Q.type == "spandrel":
            self._network = self._prepared(self._full_precision(options.pathFP.pretrain_network_FP,
                                                                options.pathFP.strict_load_FP))
        else:
            raise UserError("path:pretrain_network_Q is missing; name a quantized checkpoint, or full-precision "
                            "weights and cali_data")

    def _load_teacher(self) -> nn.Module:
        """Return the full-precision network that teaches, read from its file the first time."""
        if self._teacher is None:
            paths = self.options.pathFP
            network = self._full_precision(paths.pretrain_network_FP, paths.strict_load_FP)
            self._teacher = network.requires_grad_(False)
        return self._teacher

    def _load_quantized(self, path: str) -> None:
        options = self.options
        published = load_state_dict(path)
        if not any(name.endswith("lower_bound") for name in published):
            logger.info("'%s' holds full-precision weights; they are quantized after calibration", path)
            self._network = self._prepared(self._full_precision(path, options.path.strict_load_Q))
            return
        state, bits = quantized_importer(options.network_Q)(published)
        if not bits:
            raise UserError(f"'{path}' holds bounds but no bit-widths (n_bit); choose a complete quantized checkpoint")
        self._network = self._prepared(self._build(), options.bit or min(bits.values()))
        for name, quantizer in named_quantizers(self._network):
            found = bits.get(name, quantizer.bits)
            if options.bit is not None and found != quantizer.bits:
                raise UserError(f"bit: {options.bit} is asked for, but '{path}' was quantized to {found} bits at "
                                f"'{name}'; set bit={found} or leave it out")
            quantizer.set_bits(found)
            bound = state.get(f"{name}.lower_bound", quantizer.lower_bound)
            if bound.numel() != quantizer.lower_bound.numel() and 1 in (bound.numel(), quantizer.lower_bound.numel()):
                per = "tensor" if bound.numel() == 1 else "channel"
                raise UserError(f"'{path}' has bounds per {per} at '{name}'; set quant:weight_per={per}")
        apply_state_dict(self._network, state, path, options.path.strict_load_Q)
        check_bounds(self._network, f"'{path}'", options.quant.allow_degenerate_bounds)
        self._calibrated = True

    def prepare_training(self, dataset: PairedImageDataset) -> None:
        """Calibrate on the file ``cali_data``, on patches of ``datasets:calibration`` or of the training set."""
        self._load_teacher()
        if not self._calibrated:
            self._calibrate(self.calibration_patches(dataset))

    def prepare_testing(self) -> None:
        """Calibrate if the weights are full-precision ones that are to be quantized."""
        if not any(True for _ in named_quantizers(self._network)):
            return
        if self.options.val is None or self.options.val.backend == "simulate":
            logger.info(SIMULATED)
        if self._calibrated:
            return
        if self.options.cali_data is None:
            raise UserError("cali_data is missing: the weights are full-precision ones, which need calibration "
                            "patches; name a calibration file, or a quantized checkpoint as path:pretrain_network_Q")
        self._calibrate(load_calibration_file(self.options.cali_data, self.options.scale))

    def calibration_patches(self, dataset: PairedImageDataset) -> CalibrationSet:
        """Return the patches of ``cali_data``, ``datasets:calibration`` or the training set."""
        options, wanted = self.options, self.options.quant.calibration
        if options.cali_data is not None:
            return load_calibration_file(options.cali_data, options.scale)
        for key, data in datasets_of_phase(options, "calibration"):
            dataset = build_dataset(data, options.scale, "calibration", options.manual_seed, key, read_gt=False)
        return calibration_patches(dataset, wanted.patches, wanted.patch_size, wanted.seed, CALIBRATION_CACHE)

    def _calibrate(self, patches: CalibrationSet) -> None:
        wanted = self.options.quant.calibration
        self._calibration_digest = patches.digest
        sequential = wanted.order == "sequential"
        size = len(patches.lq) if sequential and not wanted.groups else wanted.batch_size
        batches = list(patches.lq.to(self.device, self.dtype).split(size))
        if wanted.train_mode:
            self._network.train()
        method = functools.partial(calibrate_in_order, groups=wanted.groups) if sequential else calibrate
        method(self._network, batches, forward=self._with_draws(batches), on_progress=reporter("calibration"),
               allow_degenerate=self.options.quant.allow_degenerate_bounds)
        self._network.eval()
        self._calibrated = True

    def _with_draws(self, batches: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a forward that gives each batch the same random draws in every pass (none in eval mode)."""
        draws: dict[int, dict[str, torch.Tensor]] = {}
        first = 0
        for batch in batches if self._network.training else ():
            samples = {"iteration": 0, "sample": range(first, first + len(batch))}
            draws[id(batch)] = forward_draws(self._network, samples, self.options.manual_seed, self.device)
            first += len(batch)

        def forward(batch: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self._network(batch, **draws.get(id(batch), {}))
            return output

        return forward

    @property
    def stage_lengths(self) -> Sequence[int]:
        """Iterations of each training stage."""
        assert self.options.train is not None
        return [stage.iterations for _, stage in stages_of(self.options.train)]

    def stage(self, index: int = 0) -> Stage:
        """Return a distillation stage: ``optim_bound`` on bounds."""
        logger.info(SIMULATED)
        train, learn = self.options.train, self.options.quant.learn
        assert train is not None and self._teacher is not None
        side, settings = stages_of(train)[index]
        where = quantizers_of(self._network, side)
        optimizer = stage_optimizer(train.optim_bound, bound_parameters(self._network, where), settings.lr)
        if learn.relative_step:
            RelativeSteps(optimizer, range_scales(self._network, where))
        feature = train.feature_loss
        taps = feature_taps(self.options, self._network) if feature is not None else ()
        step = DistillationStep(
            self._network, self._teacher, taps, train.pixel_opt.build(LOSSES), learn.pixel_normalization,
            float(feature.arguments.get("loss_weight", 1.0)) if feature is not None else 0.0, learn.feature_distance,
            train.compile)
        keep = order_keeper(self._network, learn.minimum_width) if learn.minimum_width else None
        schedule = stage_schedule(settings.scheduler, settings.iterations)
        return Stage(f"distillation, bounds of {side}", "Q", step, [optimizer], keep, schedule=schedule)

    def export_state(self, label: str, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return the quantized network under its published names."""
        bits = {name: quantizer.bits for name, quantizer in named_quantizers(network)}
        return quantized_exporter(self.options.network_Q)(super().export_state(label, network), bits)

    def import_state(self, label: str, network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
        """Load a quantized network given under its published names."""
        ours, _ = quantized_importer(self.options.network_Q)(state)
        apply_state_dict(network, ours, path)

    def metadata(self, label: str) -> dict[str, Any]:
        """Return the plan and where the calibration patches came from."""
        return {**super().metadata(label), "plan": self._plan.as_list(), "mode": self.options.mode,
                "calibration": self._calibration_digest}
