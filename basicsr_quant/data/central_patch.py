"""The same patch of each image whenever it is asked for."""

from __future__ import annotations

from basicsr_quant.data.augment import centre_crop
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.io.images import Image


class CentralPatchDataset(PairedImageDataset):
    """Pairs as of :class:`PairedImageDataset` whose training patches are the centres of the images, not augmented.

    For trainings that compute a target for each image once. Arguments and errors are those of that class.
    """

    def patch(
        self, item: int, size: int, seed: int, iteration: int, sample: int, stream: str = "",
    ) -> tuple[Image, Image | None]:
        """Return the central patch of ``size`` x ``size`` LR pixels; only ``item`` and ``size`` matter."""
        return centre_crop(*self.images(item), self.scale, size)
