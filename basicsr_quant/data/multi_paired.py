"""Pairs for diffusion networks: the LR image is enlarged to HR size and serves as condition."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from basicsr_quant.data.augment import augment
from basicsr_quant.data.paired import PairedImageDataset, Sample
from basicsr_quant.data.sampler import SampleIndex
from basicsr_quant.io.images import Image, to_tensor
from basicsr_quant.randomness import generator

MARGIN = 3


def enlarge(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """Enlarge an image by OpenCV's bicubic interpolation (a = -0.75, borders replicated), in float32, without clipping.

    Args:
        image: (h, w, 3), any range.
        scale: Whole factor.

    Returns:
        float32 (scale*h, scale*w, 3) in the same range, with overshoots beyond it.

    Source: BI-DiffSR specification 3.2.
    """
    height, width = image.shape[:2]
    values = np.ascontiguousarray(image, dtype=np.float32)
    return np.asarray(cv2.resize(values, (scale * width, scale * height), interpolation=cv2.INTER_CUBIC))


def enlarge_region(image: Image, scale: int, top: int, left: int, height: int, width: int) -> NDArray[Any]:
    """Return a region of the enlarged image, of which no more is computed than needed.

    Args:
        image: LR image (h, w, 3).
        scale: Whole factor.
        top: First row in HR pixels.
        left: First column in HR pixels.
        height: HR rows.
        width: HR columns.
    """
    first_row, first_column = max(top // scale - MARGIN, 0), max(left // scale - MARGIN, 0)
    last_row, last_column = -(-(top + height) // scale) + MARGIN, -(-(left + width) // scale) + MARGIN
    enlarged = enlarge(image[first_row:last_row, first_column:last_column], scale)
    top, left = top - scale * first_row, left - scale * first_column
    return enlarged[top:top + height, left:left + width]


class MultiPairedImageDataset(PairedImageDataset):
    """Pairs as of :class:`PairedImageDataset` whose ``lq`` has HR size: float32 (3, H, W), a little beyond [0, 1].

    The LR image is enlarged as a whole (or as if it were), then cut. Training patches may start at any HR pixel, not
    only on the LR grid. Arguments and errors are those of :class:`PairedImageDataset`.

    Source: BI-DiffSR specification 3.2.
    """

    def __getitem__(self, index: int | SampleIndex) -> Sample:
        sample = super().__getitem__(index)
        if not isinstance(index, SampleIndex):
            lq, _ = self.images(index)
            height, width = lq.shape[:2]
            rows, columns = (side if self.crop_size is None else min(side, self.crop_size) for side in (height, width))
            region = ((height - rows) // 2, (width - columns) // 2, rows, columns)
            sample["lq"] = to_tensor(enlarge_region(lq, self.scale, *(self.scale * value for value in region)))
        return sample

    def patch(
        self, item: int, size: int, seed: int, iteration: int, sample: int, stream: str = "",
    ) -> tuple[NDArray[Any], Image | None]:
        """Return a random augmented patch of HR size, twice; see :meth:`PairedImageDataset.patch` for the arguments.

        Returns:
            The enlarged LR patch, float32 (scale*size, scale*size, 3) in 8-bit units, and the HR patch.
        """
        cropping = generator(seed, f"{stream}crop", iteration, sample)
        flipping = generator(seed, f"{stream}augment", iteration, sample)
        lq, gt = self.images(item)
        side = self.scale * size
        top = int(cropping.integers(self.scale * lq.shape[0] - side + 1))
        left = int(cropping.integers(self.scale * lq.shape[1] - side + 1))
        images: list[NDArray[Any]] = [enlarge_region(lq, self.scale, top, left, side, side)]
        if gt is not None:
            images.append(gt[top:top + side, left:left + side])
        images = augment(images, self.use_hflip, self.use_rot, flipping)
        return images[0], None if gt is None else images[1]
