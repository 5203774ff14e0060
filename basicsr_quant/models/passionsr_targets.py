"""What the parts of a quantized pipeline get and shall give: computed once per image for a stage, kept on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from basicsr_quant import randomness
from basicsr_quant.archs.osediff_input import prepare_input
from basicsr_quant.archs.osediff_pipeline import OSEDiff
from basicsr_quant.data.paired import PairedImageDataset, Sample, collate
from basicsr_quant.data.sampler import SampleIndex
from basicsr_quant.models.base import Batch
from basicsr_quant.models.osediff_steps import POSTERIOR_STREAM
from basicsr_quant.options.methods.passionsr import PassionSROptions
from basicsr_quant.options.methods.passionsr_stages import StageOptions

STUDENT_STREAM = "student posterior"


class Images:
    """The calibration images, as the networks see them, and the noise that belongs to them.

    Args:
        options: Typed options.
        dataset: One patch of each image, always the same.
        network: The pipeline.
    """

    def __init__(self, options: PassionSROptions, dataset: PairedImageDataset, network: OSEDiff) -> None:
        self._options, self._dataset, self._network = options, dataset, network
        self._items = {pair.name: item for item, pair in enumerate(dataset.pairs)}

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, items: Sequence[int]) -> Batch:
        """Return some images as a batch of the data loader."""
        samples: list[Sample] = [self._dataset[SampleIndex(item, 0, item)] for item in items]
        return collate(samples)

    def items(self, batch: Batch) -> list[int]:
        """Return the numbers of the images of a batch."""
        return [self._items[name] for name in batch["name"]]

    def enlarged(self, batch: Batch) -> Tensor:
        """Return the LR images of a batch as the encoder sees them, (B, 3, H, W) on the networks' device."""
        parameter = next(self._network.parameters())
        enlarge, multiple = self._options.pipeline.enlarge, self._network.side_multiple
        images = [prepare_input(image, self._options.scale, enlarge, "pad", multiple, 0).image
                  for image in batch["lq"].split(1)]
        return torch.cat(images).to(parameter.device, parameter.dtype)

    def noise(self, batch: Batch, image: Tensor, student: bool, fresh: bool = False) -> Tensor | None:
        """Return the posterior's noise for a batch of enlarged images; None where its mode is taken.

        Args:
            batch: Names the images.
            image: Enlarged.
            student: For the student, which has noise of its own with ``posterior_noise: independent``.
            fresh: Draw that noise for the batch's iteration, rather than once for each image.
        """
        options = self._options
        if options.pipeline.posterior == "mode":
            return None
        shape, seed = self._network.latent_shape(*image.shape[-2:]), options.manual_seed
        own = student and options.quant.learn.posterior_noise == "independent"
        if own and fresh:
            return randomness.normal(seed, STUDENT_STREAM, batch["iteration"], batch["sample"], shape)
        return randomness.normal(seed, STUDENT_STREAM if own else POSTERIOR_STREAM, 0, self.items(batch), shape)


class Entry(NamedTuple):
    """What a stage needs of an image; None for what a batch of the data loader has itself."""

    inputs: Tensor | None
    target: Tensor | None


def result_of(network: OSEDiff, teacher: OSEDiff, stage: StageOptions, inputs: Tensor, noise: Tensor | None) -> Tensor:
    """Return what a stage compares, made by the stage's part from its inputs.

    Args:
        network: Whose part it is.
        teacher: Decodes what the UNet makes, where images are compared.
        stage: Names the part and what is compared.
        inputs: As :func:`input_of` returns them.
        noise: Of the posterior, for the encoder.
    """
    if stage.component == "all":
        return network.decode(network.one_step(network.encode(inputs, noise)))
    if stage.component == "encoder":
        return network.encode(inputs, noise)
    if stage.component == "decoder":
        return network.decode(inputs)
    if stage.loss == "noise":
        return network.predict_noise(network.unet_input(inputs))
    clean = network.one_step(inputs)
    return teacher.decode(clean) if stage.loss == "image" else clean


def input_of(pipeline: OSEDiff, component: str, image: Tensor, noise: Tensor | None) -> Tensor:
    """Return what a part of a pipeline gets when the pipeline restores images.

    Args:
        pipeline: Whose part it is.
        component: ``unet`` gets latents z, ``decoder`` clean latents, the others the images.
        image: (B, 3, H, W), enlarged.
        noise: Of the posterior.
    """
    if component not in ("unet", "decoder"):
        return image
    latent = pipeline.encode(image, noise)
    return latent if component == "unet" else pipeline.one_step(latent)


@torch.no_grad()
def entry_of(student: OSEDiff, teacher: OSEDiff, stage: StageOptions, images: Images, batch: Batch) -> Entry:
    """Compute inputs and target of a batch for a stage; the target is the teacher's all the way from the image."""
    image = images.enlarged(batch)
    latent = teacher.encode(image, images.noise(batch, image, student=False)) if _asks_teacher(stage) else None
    inputs, target = None, None
    if stage.component in ("unet", "decoder"):
        source = teacher if stage.input == "teacher" else student
        inputs = latent if source is teacher else student.encode(image, images.noise(batch, image, student=True))
        assert inputs is not None
        if stage.component == "decoder":
            inputs = source.one_step(inputs)
    if stage.target == "teacher":
        assert latent is not None
        target = _target(teacher, stage, latent)
    return Entry(inputs, target)


def _asks_teacher(stage: StageOptions) -> bool:
    return stage.target == "teacher" or (stage.input == "teacher" and stage.component in ("unet", "decoder"))


def _target(teacher: OSEDiff, stage: StageOptions, latent: Tensor) -> Tensor:
    if stage.loss == "latent":
        return latent
    if stage.loss == "noise":
        return teacher.predict_noise(teacher.unet_input(latent))
    clean = teacher.one_step(latent)
    return teacher.decode(clean) if stage.loss == "image" else clean


def stacked(tensors: Iterable[Tensor | None], like: Tensor) -> Tensor | None:
    """Return tensors (C, ...) as a batch in the place and precision of ``like``; None if there are none."""
    found = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(found).to(like.device, like.dtype, non_blocking=True) if found else None
