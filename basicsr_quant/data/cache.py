"""Decoded images kept in memory, because decoding bounds training on small machines."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import get_worker_info

from basicsr_quant.io.images import Image

DEFAULT_CACHE_BYTES = 512 * 2**20


class ImageCache:
    """Keeps the first images that fit and reads the others anew each time.

    Nothing is ever evicted: with a fixed set in random order this serves as many hits as any other policy.

    Args:
        limit: Bytes of pixels, shared evenly among the worker processes of a loader.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._images: dict[str, Image] = {}
        self._bytes = 0

    def get(self, key: str, load: Callable[[], Image]) -> Image:
        """Return the image under ``key``, calling ``load`` if it is not kept; the array is read-only."""
        if key in self._images:
            return self._images[key]
        image = load()
        image.flags.writeable = False
        worker = get_worker_info()
        if self._bytes + image.nbytes <= self._limit // (worker.num_workers if worker is not None else 1):
            self._images[key] = image
            self._bytes += image.nbytes
        return image
