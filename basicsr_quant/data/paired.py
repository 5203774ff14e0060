"""LR images, with or without their HR references, as samples of float tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from basicsr_quant.data.augment import augment, centre_crop, crop_pair, random_crop
from basicsr_quant.data.cache import DEFAULT_CACHE_BYTES, ImageCache
from basicsr_quant.data.pairing import Pair, check_sizes, pair_names, select
from basicsr_quant.data.sampler import SampleIndex
from basicsr_quant.data.stores import ImageStore, open_store
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import MAX_PIXELS, Image, decode_image, to_tensor
from basicsr_quant.randomness import generator

Sample = dict[str, Any]


class PairedImageDataset(Dataset[Sample]):
    """Pairs of LR and HR images, sorted by name.

    An ``int`` index gives a whole image (or its central crop), a :class:`SampleIndex` a random, augmented patch. Names,
    counts and sizes are checked here, from headers; an HR image that is larger than scale * LR by less than
    ``scale`` pixels is cropped at the bottom and right.

    Args:
        dataroot_lq: LR folder or LMDB.
        scale: HR pixels per LR pixel.
        dataroot_gt: HR folder or LMDB; None for LR images alone.
        key: Name of the data set in the options (``train``, ``test_1``), for error messages.
        filename_tmpl: LR name from the HR name, as ``{}x4``.
        backend: ``disk`` or ``lmdb``.
        seed: ``manual_seed``, from which crops and flips are drawn.
        gt_size: Side of a training patch in HR pixels, a multiple of ``scale``; None = no patches.
        use_hflip: Horizontal flips in training.
        use_rot: Vertical flips and transpositions in training.
        exclude_last: Leave out that many of the last names.
        only_last: Take only that many of the last names (0 = all).
        crop_size: Side of the central HR crop of whole images, a multiple of ``scale``; None = whole.
        read_gt: If false, HR images are checked but neither decoded nor returned.
        cache_bytes: Bytes of decoded images that are kept in memory.
        max_pixels: Larger images are refused.
        lenient: An unreadable image and one that does not fit its partner or has none raise their error when they are
            asked for and not here, so that the others can be used.

    Raises:
        UserError: A folder is missing, images do not pair up, or a patch is larger than an image.
    """

    def __init__(
        self, *, dataroot_lq: str | Path, scale: int, dataroot_gt: str | Path | None = None, key: str = "images",
        filename_tmpl: str = "{}", backend: str = "disk", seed: int = 0, gt_size: int | None = None,
        use_hflip: bool = True, use_rot: bool = True, exclude_last: int = 0, only_last: int = 0,
        crop_size: int | None = None, read_gt: bool = True, cache_bytes: int = DEFAULT_CACHE_BYTES,
        max_pixels: int = MAX_PIXELS, lenient: bool = False,
    ) -> None:
        for option, size in (("gt_size", gt_size), ("crop_size", crop_size)):
            if size is not None and (size < scale or size % scale):
                raise UserError(f"datasets:{key}:{option}: {size} is no positive multiple of the scale {scale}")
        self.scale, self.key, self.seed, self.use_hflip, self.use_rot = scale, key, seed, use_hflip, use_rot
        self.patch_size = None if gt_size is None else gt_size // scale
        self.crop_size = None if crop_size is None else crop_size // scale
        self._max_pixels = max_pixels
        self._lq = open_store(dataroot_lq, backend, f"datasets:{key}:dataroot_lq", max_pixels)
        gt = None if dataroot_gt is None else open_store(dataroot_gt, backend, f"datasets:{key}:dataroot_gt",
                                                         max_pixels)
        names, alone = pair_names(gt, self._lq, filename_tmpl, key, backend == "lmdb")
        if alone and not (lenient and names):
            raise UserError(alone[0].defect)
        names = select(names, exclude_last, only_last, key)
        self.pairs: Sequence[Pair] = [*check_sizes(names, gt, self._lq, scale, key, lenient), *alone]
        self._gt: ImageStore | None = gt if read_gt else None
        if self.patch_size is not None:
            self.check_patch(self.patch_size)
        self._cache = ImageCache(cache_bytes)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def has_gt(self) -> bool:
        """Whether samples hold HR images."""
        return self._gt is not None

    def check_patch(self, size: int) -> None:
        """Make sure that a patch of ``size`` x ``size`` LR pixels fits into every image.

        Raises:
            UserError: An image is smaller; the message names its file.
        """
        for pair in self.pairs:
            if min(pair.size) < size:
                raise UserError(f"datasets:{self.key}: a patch of {size}x{size} LR pixels (HR {size * self.scale}) is "
                                f"larger than '{self._lq.path(pair.lq)}' ({pair.size[0]}x{pair.size[1]}); lower "
                                "gt_size or remove the image")

    def lq_path(self, item: int) -> str:
        """Return the path of an LR image."""
        return self._lq.path(self.pairs[item].lq)

    def gt_path(self, item: int) -> str | None:
        """Return the path of an HR image, or None if it is not read."""
        name = self.pairs[item].gt
        return None if self._gt is None or name is None else self._gt.path(name)

    def lq_content(self, item: int) -> bytes:
        """Return the encoded LR image."""
        return self._lq.read(self.pairs[item].lq)

    def images(self, item: int) -> tuple[Image, Image | None]:
        """Return a whole pair, uint8 RGB (h, w, 3) and (scale*h, scale*w, 3) or None.

        Raises:
            UserError: A file is damaged, has no partner, or has changed its size since the start.
        """
        pair = self.pairs[item]
        if pair.defect is not None:
            raise UserError(pair.defect)
        lq = self._image(self._lq, pair.lq)
        if lq.shape[:2] != pair.size:
            raise UserError(f"'{self._lq.path(pair.lq)}' decodes to {lq.shape[0]}x{lq.shape[1]}, not to "
                            f"{pair.size[0]}x{pair.size[1]} as found at the start; make the data set again")
        if self._gt is None or pair.gt is None:
            return lq, None
        gt = self._image(self._gt, pair.gt)
        return crop_pair(lq, gt, self.scale, 0, 0, *pair.size)

    def _image(self, store: ImageStore, name: str) -> Image:
        path = store.path(name)
        return self._cache.get(path, lambda: decode_image(store.read(name), path, self._max_pixels))

    def __getitem__(self, index: int | SampleIndex) -> Sample:
        if isinstance(index, SampleIndex):
            item, iteration, number = index
            if self.patch_size is None:
                raise UserError(f"datasets:{self.key}:gt_size is missing; training needs it (HR pixels of a patch)")
            lq, gt = self.patch(item, self.patch_size, self.seed, iteration, number)
        else:
            item, iteration, number = index, 0, index
            lq, gt = self.images(item)
            if self.crop_size is not None:
                lq, gt = centre_crop(lq, gt, self.scale, self.crop_size)
        sample: Sample = {"lq": to_tensor(lq), "name": self.pairs[item].name, "lq_path": self.lq_path(item),
                          "iteration": iteration, "sample": number}
        if gt is not None:
            sample |= {"gt": to_tensor(gt), "gt_path": self.gt_path(item)}
        return sample

    def patch(
        self, item: int, size: int, seed: int, iteration: int, sample: int, stream: str = "",
    ) -> tuple[Image, Image | None]:
        """Return a random augmented patch of ``size`` x ``size`` LR pixels; the draws depend on the arguments alone.

        Args:
            item: Index of the image.
            size: Side in LR pixels.
            seed: Seed of the draws.
            iteration: Training iteration.
            sample: Index of the sample in the iteration.
            stream: Prefix of the random streams ``crop`` and ``augment``; another prefix gives independent draws.
        """
        cropping = generator(seed, f"{stream}crop", iteration, sample)
        flipping = generator(seed, f"{stream}augment", iteration, sample)
        lq, gt = random_crop(*self.images(item), self.scale, size, cropping)
        images = augment([lq] if gt is None else [lq, gt], self.use_hflip, self.use_rot, flipping)
        return images[0], None if gt is None else images[1]


def collate(samples: Sequence[Sample]) -> Sample:
    """Stack samples to a batch.

    Returns:
        ``lq`` (B, 3, h, w), ``gt`` (B, 3, H, W) if the samples have it, ``name``, ``lq_path``, ``gt_path`` and
        ``sample`` as lists, ``iteration`` of the first.
    """
    lists = {key: [sample[key] for sample in samples] for key in samples[0]}
    tensors = {key: torch.stack(lists[key]) for key in ("lq", "gt") if key in lists}
    return lists | tensors | {"iteration": samples[0]["iteration"]}
