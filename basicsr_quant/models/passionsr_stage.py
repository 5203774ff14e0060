"""Making the stages of PassionSR's distillation, and of the methods that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.io.progress import reporter
from basicsr_quant.models.base import LearningRateSchedule, Stage
from basicsr_quant.models.passionsr_blocks import BlockStep
from basicsr_quant.models.passionsr_prepare import part_of
from basicsr_quant.models.passionsr_steps import LastStep, PartStep, entries_of
from basicsr_quant.models.passionsr_targets import Images
from basicsr_quant.options.methods.passionsr import PassionSROptions
from basicsr_quant.options.methods.passionsr_stages import StageOptions
from basicsr_quant.options.optimization import OPTIMIZERS, SCHEDULERS, stage_schedule
from basicsr_quant.quant.adaround import install_learned_rounding
from basicsr_quant.quant.bounds import RelativeSteps
from basicsr_quant.quant.calibrate import calibrate, set_state
from basicsr_quant.quant.gradient_memory import EpochGradients
from basicsr_quant.quant.layers.weighted import merge_weights
from basicsr_quant.quant.quantization_aware_lora import install_low_rank_changes
from basicsr_quant.quant.quantizer import State
from basicsr_quant.quant.reconstruction import PHASES
from basicsr_quant.quant.selection import Selection
from basicsr_quant.registry import LOSSES, SELECTORS

_LABELS = {"encoder": "vae", "unet": "unet", "decoder": "vae", "all": "unet"}


class StageMaker:
    """Makes one stage from the networks as they are; everything is frozen but what it learns.

    Args:
        options: Typed options with a ``train`` block.
        network: The student.
        teacher: The pipeline in full precision.
        dataset: The calibration images.
        name: Of the stage.
        settings: Of the stage.
        length: Its iterations.
        epoch: Iterations that go once through the images.
    """

    def __init__(self, options: PassionSROptions, network: OSEDiff, teacher: OSEDiff, dataset: PairedImageDataset,
                 name: str, settings: StageOptions, length: int, epoch: int) -> None:
        assert options.train is not None
        self._options, self._train, self._settings = options, options.train, settings
        self._network, self._teacher, self._dataset = network, teacher, dataset
        self._name, self._length, self._epoch = name, length, epoch
        self._images = Images(options, dataset, network)
        self._part = part_of(network, settings.component)
        network.requires_grad_(False)
        set_state(network, State.QUANTIZE)
        merge_weights(self._part)
        if self._train.activation_checkpointing:
            network.unet.enable_gradient_checkpointing()
            network.vae.enable_gradient_checkpointing()

    def whole(self, closes: bool) -> Stage:
        """Return a stage in which the part learns as a whole.

        Args:
            closes: Whether no later stage takes over bounds that were renewed batch by batch.
        """
        settings = self._settings
        if settings.rank:
            install_low_rank_changes(self._part, settings.rank, self._options.manual_seed)
        entries = entries_of(self._network, self._teacher, settings, self._images)
        step = PartStep(self._network, self._teacher, settings, self._images, entries,
                        self._train.pixel_opt.build(LOSSES))
        if settings.bounds == "recalibrated":
            self._recalibrate(step)
        selection, optimizer = self._learning()
        last = LastStep(self._length, lambda: self._recalibrate(step))
        if settings.bounds != "renewed" or not closes:
            return self._stage(step, optimizer, selection.keep)
        return self._stage(step, optimizer, selection.keep, last.begin, last.end)

    def by_block(self, blocks: Sequence[str]) -> Stage:
        """Return a stage in which the part's blocks learn one after another.

        Args:
            blocks: Their names in the pipeline.

        Raises:
            UserError: There are several processes.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise UserError(f"train:stages:{self._name}:per_block runs in one process; start without torchrun")
        PHASES[self._settings.learn].prepare(self._network)
        if self._settings.learn == "rounding":
            for block in blocks:
                install_learned_rounding(self._network.get_submodule(block))
        step = BlockStep(self._network, self._teacher, self._settings, self._images, blocks)
        selection, optimizer = self._learning()
        return self._stage(step, optimizer, selection.keep, step.begin, step.end)

    def _recalibrate(self, step: PartStep) -> None:
        """Set the bounds of the part from all images."""
        quant = self._options.quant
        calibrate(self._part, list(torch.arange(len(self._images)).split(quant.calibration.batch_size)),
                  forward=step.show, on_progress=reporter("calibration"),
                  allow_degenerate=quant.allow_degenerate_bounds)

    def _learning(self) -> tuple[Selection, torch.optim.Optimizer]:
        learn = self._options.quant.learn
        selection: Selection = SELECTORS.get(self._settings.learn)(self._part, learn.minimum_width)
        component = self._settings.optim or self._train.optim
        optimizer: torch.optim.Optimizer = component.build(OPTIMIZERS, params=selection.parameters)
        if learn.gradient_memory == "epoch":
            EpochGradients(optimizer, self._epoch)
        if learn.relative_step and selection.units:
            RelativeSteps(optimizer, list(selection.units))
        return selection, optimizer

    def _stage(self, step: nn.Module, optimizer: torch.optim.Optimizer, keep: Callable[[], None] | None,
               begin: Callable[[float], None] | None = None, end: Callable[[], None] | None = None) -> Stage:
        return Stage(self._name, _LABELS[self._settings.component], step, [optimizer], keep, begin,
                     schedule=self._schedule(), dataset=self._dataset, after_iteration=end)

    def _schedule(self) -> LearningRateSchedule | None:
        component, decay = self._settings.scheduler, self._settings.decay
        halved = component is None and decay != 1
        schedule: LearningRateSchedule | None = (SCHEDULERS.build("MultiStepLR", [self._length // 2], decay) if halved
                                                 else stage_schedule(component, self._length))
        return schedule
