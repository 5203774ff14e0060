"""Stages of Q-Diffusion: the blocks of a part of OSEDiff's pipeline learn one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.io.progress import reporter
from basicsr_quant.models.base import Batch
from basicsr_quant.models.passionsr_targets import Images, input_of, result_of
from basicsr_quant.options.methods.passionsr_stages import StageOptions
from basicsr_quant.quant.block_samples import blocks_in_order
from basicsr_quant.quant.bounds import matches
from basicsr_quant.quant.reconstruction import PHASES, Reconstruction

BLOCKS: Mapping[str, Sequence[str]] = {
    "encoder": ("vae.encoder.*.resnets.*", "vae.encoder.*.attentions.*"),
    "unet": ("unet.*.resnets.*", "unet.*.transformer_blocks.*"),
    "decoder": ("vae.decoder.*.resnets.*", "vae.decoder.*.attentions.*"),
}
"""What Q-Diffusion reconstructs as one block; every other layer is one by itself."""


class Part:
    """One part of a pipeline, to be run image by image.

    Args:
        stage: Names the part.
        images: The calibration images.
    """

    def __init__(self, stage: StageOptions, images: Images) -> None:
        self._stage, self._images = stage, images

    def given(self, pipeline: OSEDiff, item: int, student: bool) -> Tensor:
        """Return what the part gets for an image, on the CPU: a latent, or for the encoder the LR image.

        Args:
            pipeline: What comes before the part.
            item: Number of the image.
            student: Whether the student's noise is drawn for it.
        """
        batch = self._images.batch([item])
        if self._stage.component == "encoder":
            lq: Tensor = batch["lq"]
            return lq
        image = self._images.enlarged(batch)
        noise = self._images.noise(batch, image, student)
        return input_of(pipeline, self._stage.component, image, noise).cpu()

    def run(self, pipeline: nn.Module, given: Tensor) -> Tensor:
        """Run the part."""
        assert isinstance(pipeline, OSEDiff)
        if self._stage.component == "encoder":
            given = self._images.enlarged({"lq": given})
        parameter = next(pipeline.parameters())
        return result_of(pipeline, pipeline, self._stage, given.to(parameter.device, parameter.dtype), None)


@torch.no_grad()
def blocks_of(network: OSEDiff, stage: StageOptions, images: Images) -> list[str]:
    """Return the names of the blocks of a stage's part in which something learns, in the order in which they run.

    Raises:
        UserError: A pattern of ``blocks`` matches nothing.
    """
    names = [name for name, _ in network.named_modules()]
    patterns = stage.blocks
    if patterns is None:
        patterns = [pattern for pattern in BLOCKS[stage.component] if any(matches(name, (pattern,)) for name in names)]
    part = Part(stage, images)
    found = blocks_in_order(network, part.given(network, 0, student=True), part.run, patterns)
    return [name for name in found if PHASES[stage.learn].concerns(network.get_submodule(name))]


class BlockStep(nn.Module):
    """The training step of a stage with ``per_block``.

    Args:
        network: The student, its quantizers in the states of the stage's phase.
        teacher: In full precision; not part of this module's parameters.
        stage: Names part, phase and iterations.
        images: The calibration images.
        blocks: Names of the blocks, of :func:`blocks_of`.
    """

    def __init__(self, network: OSEDiff, teacher: OSEDiff, stage: StageOptions, images: Images,
                 blocks: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._images, self._iteration = images, 0
        part, samples = Part(stage, images), []
        report = reporter("inputs")
        with torch.no_grad():
            for item in range(len(images)):
                given = part.given(teacher, item, student=False)
                samples.append((part.given(network, item, student=True) if stage.input == "student" else given, given))
                report(item + 1, len(images))
        self._learning = Reconstruction(network, teacher, samples, blocks, PHASES[stage.learn], forward=part.run,
                                        iterations=stage.per_block)

    def begin(self, progress: float) -> None:
        """Note which iteration comes next.

        Args:
            progress: Finished part of the stage.
        """
        self._iteration = round(progress * self._learning.length)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the iteration's block on the images of a batch of the data loader."""
        return self._learning.loss(self._iteration, self._images.items(batch))

    def end(self) -> None:
        """Make final what a block has learned, after its last step."""
        self._learning.after_step(self._iteration)
