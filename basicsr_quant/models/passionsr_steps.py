"""The training step of all stages of PassionSR's distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.io.progress import reporter
from basicsr_quant.models.base import Batch
from basicsr_quant.models.passionsr_prepare import part_of
from basicsr_quant.models.passionsr_targets import Entry, Images, entry_of, result_of, stacked
from basicsr_quant.models.step import Example, StudentStep
from basicsr_quant.options.methods.passionsr_stages import StageOptions
from basicsr_quant.quant.layers.weighted import frozen_weights
from basicsr_quant.quant.let_calibration import renewed_bounds


def entries_of(student: OSEDiff, teacher: OSEDiff, stage: StageOptions, images: Images) -> dict[str, Entry]:
    """Compute inputs and targets of all images for a stage, one after another; they are kept on the CPU."""
    entries = {}
    report = reporter("targets")
    with frozen_weights(student):
        for item in range(len(images)):
            batch = images.batch([item])
            found = entry_of(student, teacher, stage, images, batch)
            entries[batch["name"][0]] = Entry(*(None if tensor is None else tensor[0].cpu() for tensor in found))
            report(item + 1, len(images))
    return entries


class PartStep(StudentStep):
    """One part of the quantized pipeline against its targets.

    Source: PassionSR specification 5.

    Args:
        network: The student.
        teacher: In full precision; not part of this module's parameters.
        stage: What is compared.
        images: The calibration images.
        entries: Name -> inputs and target.
        pixel_loss: Called with result and target.
    """

    def __init__(self, network: OSEDiff, teacher: OSEDiff, stage: StageOptions, images: Images,
                 entries: Mapping[str, Entry], pixel_loss: nn.Module) -> None:
        super().__init__(network, pixel_loss)
        self._pipelines: Callable[[], tuple[OSEDiff, OSEDiff]] = lambda: (network, teacher)
        self._part: Callable[[], nn.Module] = lambda: part_of(network, stage.component)
        self._stage, self._images, self._entries = stage, images, entries

    def example(self, batch: Batch) -> Example:
        """Return what is kept of the images of a batch; the encoder's inputs and HR targets are in the batch."""
        parameter = next(self.network.parameters())
        entries = [self._entries[name] for name in batch["name"]]
        inputs = stacked((entry.inputs for entry in entries), parameter)
        target = stacked((entry.target for entry in entries), parameter)
        if inputs is None:
            inputs = self._images.enlarged(batch)
        if target is None:
            target = batch["gt"].to(parameter.device, parameter.dtype, non_blocking=True)
        return Example(inputs, target)

    def run(self, inputs: Tensor, batch: Batch) -> Tensor:
        """Return what the part makes of its inputs."""
        with renewed_bounds(self._part()) if self._stage.bounds == "renewed" else nullcontext():
            return self._result(inputs, batch)

    def _result(self, inputs: Tensor, batch: Batch) -> Tensor:
        noise = None
        if self._stage.component in ("encoder", "all"):
            noise = self._images.noise(batch, inputs, student=True, fresh=True)
        return result_of(*self._pipelines(), self._stage, inputs, noise)

    @torch.no_grad()
    def show(self, items: Tensor) -> None:
        """Run the part on some images by their numbers, for its quantizers to see."""
        batch = self._images.batch(items.tolist())
        self._result(self.example(batch).inputs, batch)


class LastStep:
    """Calls a function after the last step of a stage.

    Args:
        length: Iterations of the stage.
        function: To be called.
    """

    def __init__(self, length: int, function: Callable[[], None]) -> None:
        self._length, self._function = length, function
        self._iteration = 0

    def begin(self, progress: float) -> None:
        """Note which iteration comes next, from the finished part of the stage."""
        self._iteration = round(progress * self._length)

    def end(self) -> None:
        """Call the function if that iteration is the last."""
        if self._iteration == self._length - 1:
            self._function()
