"""Where images lie: a folder of files (the LMDB counterpart is in :mod:`basicsr_quant.data.lmdb`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from basicsr_quant.errors import UserError
from basicsr_quant.io.images import IMAGE_SUFFIXES, MAX_PIXELS, image_size, read_content


class ImageStore(Protocol):
    """Encoded images by name."""

    names: list[str]

    def path(self, name: str) -> str:
        """Return what to call the image in a message or a report."""
        ...

    def size(self, name: str) -> tuple[int, int]:
        """Return (height, width) without decoding."""
        ...

    def read(self, name: str) -> bytes:
        """Return the encoded image."""
        ...


class FolderStore:
    """The image files of one folder (not of its subfolders), by stem, sorted.

    Args:
        root: The folder.
        key: Option that names it (``datasets:val:dataroot_gt``), for the error message.
        max_pixels: Sizes above it are refused.

    Raises:
        UserError: The folder is missing, unreadable or holds no image, or two files have the same stem.
    """

    def __init__(self, root: str | Path, key: str, max_pixels: int = MAX_PIXELS) -> None:
        self.root, self._max_pixels = Path(root), max_pixels
        if not self.root.is_dir():
            raise UserError(f"{key}: folder '{root}' does not exist; correct the path or put the images there")
        self._files: dict[str, str] = {}
        for name in _image_names(self.root, key):
            stem = Path(name).stem
            if stem in self._files:
                former = self.root / self._files[stem]
                raise UserError(f"{key}: '{former}' and '{self.root / name}' have the same stem; remove one")
            self._files[stem] = name
        if not self._files:
            raise UserError(f"{key}: folder '{root}' holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.names = sorted(self._files)

    def path(self, name: str) -> str:
        """Return the path of the file."""
        return str(self.root / self._files[name])

    def size(self, name: str) -> tuple[int, int]:
        """Return (height, width) from the file's header."""
        return image_size(self.path(name), self._max_pixels)

    def read(self, name: str) -> bytes:
        """Return the file's bytes."""
        return read_content(self.path(name))


def _image_names(root: Path, key: str) -> list[str]:
    """Return the sorted names of a folder's images, links that lead nowhere too: to be told of, not passed over."""
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".")
                          and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not _is_folder(entry))
    except OSError as error:
        raise UserError(f"{key}: cannot read folder '{root}': {error.strerror or error}; check its rights") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def open_store(root: str | Path, backend: str, key: str, max_pixels: int = MAX_PIXELS) -> ImageStore:
    """Open the images below ``root``.

    Args:
        root: A folder of images, or an LMDB folder.
        backend: ``disk`` or ``lmdb``.
        key: Option that names ``root``, for the error message.
        max_pixels: Sizes above it are refused.
    """
    if backend == "lmdb":
        from basicsr_quant.data.lmdb import LmdbStore

        return LmdbStore(root, key)
    if backend == "disk":
        return FolderStore(root, key, max_pixels)
    raise UserError(f"{key}: io_backend '{backend}' is unknown; choose disk or lmdb")
