"""The same patch of each image whenever it is asked for."""

from __future__ import annotations

import copy

from basicsr_quant.data.augment import centre_crop
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.io.images import Image
from basicsr_quant.randomness import generator


class CentralPatchDataset(PairedImageDataset):
    """Pairs as of :class:`PairedImageDataset` whose training patches are the centres of the images, not augmented.

    For trainings that compute a target for each image once. Arguments and errors are those of that class.
    """

    def patch(
        self, item: int, size: int, seed: int, iteration: int, sample: int, stream: str = "",
    ) -> tuple[Image, Image | None]:
        """Return the central patch of ``size`` x ``size`` LR pixels; only ``item`` and ``size`` matter."""
        return centre_crop(*self.images(item), self.scale, size)

    def subset(self, count: int) -> CentralPatchDataset:
        """Return the same data set with only ``count`` of its images, chosen by the seed; all if there are no more."""
        if count >= len(self.pairs):
            return self
        chosen = sorted(generator(self.seed, "subset").permutation(len(self.pairs))[:count])
        smaller = copy.copy(self)
        smaller.pairs = [self.pairs[item] for item in chosen]
        return smaller
