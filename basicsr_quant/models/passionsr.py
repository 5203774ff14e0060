"""``model_type: PassionSRModel``: post-training quantization of OSEDiff's UNet and VAE."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.data.build import build_dataset
from basicsr_quant.data.central_patch import CentralPatchDataset
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.io.progress import reporter
from basicsr_quant.io.weights import load_file, load_state_dict
from basicsr_quant.models.base import Stage
from basicsr_quant.models.one_step import OneStepModel
from basicsr_quant.models.osediff_networks import loaded_pipeline, skeleton_pipeline
from basicsr_quant.models.passionsr_blocks import blocks_of
from basicsr_quant.models.passionsr_folding import fold_norms
from basicsr_quant.models.passionsr_prepare import components_of, plan_of, prepare_pipeline, structure_of, teacher_of
from basicsr_quant.models.passionsr_stage import StageMaker
from basicsr_quant.models.passionsr_targets import Images
from basicsr_quant.models.passionsr_weights import load_quantization, quantization_state
from basicsr_quant.models.tdquant import SIMULATED
from basicsr_quant.options.methods.passionsr import PassionSROptions, lengths_of, stages_of
from basicsr_quant.options.types import datasets_of_phase
from basicsr_quant.quant.calibrate import check_bounds
from basicsr_quant.quant.layers.weighted import merge_weights
from basicsr_quant.quant.let_calibration import calibrate_in_one_pass, calibrate_scales_first
from basicsr_quant.quant.plan import QuantPlan
from basicsr_quant.quant.reconstruction import finished_form

logger = logging.getLogger("basicsr_quant")

RELEASED_MOMENTUM = 0.9


class PassionSRModel(OneStepModel):
    """Quantize OSEDiff: calibrate, then learn transformations and bounds part by part from the pipeline itself.

    Checkpoints ``net_unet`` and ``net_vae`` hold what the quantization adds, under the published names where these
    reach; the full-precision weights stay where the ``path`` options say.
    """

    options: PassionSROptions
    needs_ground_truth = False

    def __init__(self, options: PassionSROptions, device: torch.device) -> None:
        super().__init__(options, device)
        self._teacher: OSEDiff | None = None
        self._plan = QuantPlan(())
        self._dataset: PairedImageDataset | None = None
        self._blocks: Mapping[str, Sequence[str]] = {}
        self._calibrated = False

    @classmethod
    def skeleton(cls, options: PassionSROptions) -> nn.Module:
        """Return the prepared pipeline without weights."""
        pipeline = skeleton_pipeline(options)
        return prepare_pipeline(pipeline, plan_of(options, pipeline))

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """Checkpoints hold the quantized networks."""
        return {component: getattr(self._network, component) for component in components_of(self.options)}

    def load_pretrained(self, training: bool) -> None:
        """Load the full-precision weights, and the quantization if the ``path`` options name it."""
        options = self.options
        double = training and options.train is not None and options.train.precision == "fp64"
        pipeline = loaded_pipeline(options).to(self.device, torch.float64 if double else torch.float32)
        pipeline.eval().requires_grad_(False)
        self._teacher = teacher_of(pipeline) if training else None
        self._plan = plan_of(options, pipeline)
        self._network = prepare_pipeline(pipeline, self._plan).requires_grad_(False)
        files = {component: getattr(options.path, f"{component}_ckpt") for component in components_of(options)}
        missing = [component for component, file in files.items() if file is None]
        if missing and (not training or len(missing) < len(files)):
            raise UserError(f"path:{missing[0]}_ckpt is missing; name the quantization of the {missing[0]}: "
                            f"net_{missing[0]}_latest.pth of a training, or a released file")
        if missing:
            return
        for component, file in files.items():
            self._check_plan(file)
            load_quantization(getattr(self._network, component), component, load_state_dict(file), str(file))
        check_bounds(self._network, ", ".join(map(str, files.values())), options.quant.allow_degenerate_bounds)
        self._calibrated = True
        if not training:
            merge_weights(self._network)
            if options.quant.fold_norms and (count := fold_norms(self._network)):
                logger.info("the norms before %d layers do their transformations", count)

    def _check_plan(self, file: str) -> None:
        """Compare the plan that a checkpoint of ours was made with, but for observers; released files name none."""
        content: Any = load_file(file)
        saved = content.get("metadata", {}).get("plan") if "params" in content else None
        if saved is None:
            return
        theirs, ours = structure_of(saved), structure_of(self._plan.as_list())
        different = next((line for line, own in zip(theirs, ours, strict=False) if line != own), None)
        if different is not None or len(theirs) != len(ours):
            where = f", first at '{next(iter(different))}'" if different else ""
            raise UserError(f"'{file}' was quantized by another plan than these options describe{where}; test it with "
                            "the mode and the quant block that it was trained with")

    def prepare_testing(self) -> None:
        """Bring the networks to the precision of the test."""
        logger.info(SIMULATED)
        super().prepare_testing()

    def prepare_training(self, dataset: PairedImageDataset) -> None:
        """Calibrate on the training images, unless the quantization was loaded."""
        options = self.options
        if any(stage.target == "hr" for _, stage in stages_of(options)):
            [(key, data)] = datasets_of_phase(options, "train")
            dataset = build_dataset(data, options.scale, "train", options.manual_seed, key)
        if options.quant.calibration.images and isinstance(dataset, CentralPatchDataset):
            dataset = dataset.subset(options.quant.calibration.images)
        self._dataset = dataset
        side = (dataset.patch_size or 0) * options.scale // self._network.factor
        if options.quant.smooth.map_value and side != options.pipeline.tiles.latent:
            raise UserError(f"datasets:train:gt_size gives latents of {side}, quant:smooth:map_value is for those of "
                            f"pipeline:tiles:latent={options.pipeline.tiles.latent}; make the two agree")
        logger.info(SIMULATED)
        images = Images(options, dataset, self._network)
        if not self._calibrated:
            self._calibrate(images)
            self._calibrated = True
        self._blocks = {name: blocks_of(self._network, stage, images)
                        for name, stage in stages_of(options) if stage.per_block}

    def _calibrate(self, images: Images) -> None:
        quant = self.options.quant
        wanted = quant.calibration
        batches = list(torch.arange(len(images)).split(wanted.batch_size))
        if wanted.order == "one_pass" and len(batches) > 1 and len(batches[-1]) < wanted.batch_size:
            batches.pop()
        momentum = RELEASED_MOMENTUM if wanted.scale_momentum is None else wanted.scale_momentum
        method = (functools.partial(calibrate_in_one_pass, momentum=momentum) if wanted.order == "one_pass" else
                  functools.partial(calibrate_scales_first, momentum=wanted.scale_momentum))

        def forward(items: Tensor) -> None:
            batch = images.batch(items.tolist())
            image = images.enlarged(batch)
            clean = self._network.one_step(self._network.encode(image, images.noise(batch, image, student=True)))
            if not quant.only_unet:
                self._network.decode(clean)

        with torch.no_grad():
            method(self._network, batches, forward=forward, on_progress=reporter("calibration"),
                   allow_degenerate=quant.allow_degenerate_bounds)

    @property
    def _epoch(self) -> int:
        """Iterations that go once through the training images."""
        assert self._dataset is not None and self.options.train is not None
        [(_, data)] = datasets_of_phase(self.options, "train")
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        samples = data.batch_size_per_gpu * self.options.train.accumulation * processes
        return max(1, len(self._dataset) * data.dataset_enlarge_ratio // samples)

    @property
    def stage_lengths(self) -> Sequence[int]:
        """Iterations of each stage."""
        return lengths_of(self.options, self._epoch, {name: len(blocks) for name, blocks in self._blocks.items()})

    def stage(self, index: int = 0) -> Stage:
        """Return a stage: targets computed with the networks as they are, everything frozen but what learns."""
        assert self._teacher is not None and self._dataset is not None
        name, settings = stages_of(self.options)[index]
        later = {stage.component for _, stage in stages_of(self.options)[index + 1:]}
        maker = StageMaker(self.options, self._network, self._teacher, self._dataset, name, settings,
                           self.stage_lengths[index], self._epoch)
        return (maker.by_block(self._blocks[name]) if settings.per_block
                else maker.whole(closes=not later & {settings.component, "all"}))

    def inference_form(self, network: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which everything is rounded as it will be in the end, weights once."""
        return finished_form(network)

    def export_state(self, label: str, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return what the quantization adds to a network."""
        return quantization_state(network, "vae" if label == "vae" else "unet")

    def import_state(self, label: str, network: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
        """Load what :meth:`export_state` returned."""
        load_quantization(network, "vae" if label == "vae" else "unet", state, str(path))

    def metadata(self, label: str) -> dict[str, Any]:
        """Return the plan."""
        return {**super().metadata(label), "mode": self.options.mode, "plan": self._plan.as_list()}
