"""Where images lie: a folder of files (the LMDB counterpart is in :mod:`basicsr_quant.data.lmdb`)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from basicsr_quant.errors import UserError
from basicsr_quant.io.images import IMAGE_SUFFIXES, image_size, read_content


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

    Raises:
        UserError: The folder is missing or holds no image, or two files have the same stem.
    """

    def __init__(self, root: str | Path, key: str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{key}: folder '{root}' does not exist; correct the path or put the images there")
        self._files: dict[str, str] = {}
        for file in sorted(self.root.iterdir()):
            if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith(".") or not file.is_file():
                continue
            if file.stem in self._files:
                former = self.root / self._files[file.stem]
                raise UserError(f"{key}: '{former}' and '{file}' have the same stem; remove one")
            self._files[file.stem] = file.name
        if not self._files:
            raise UserError(f"{key}: folder '{root}' holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.names = sorted(self._files)

    def path(self, name: str) -> str:
        """Return the path of the file."""
        return str(self.root / self._files[name])

    def size(self, name: str) -> tuple[int, int]:
        """Return (height, width) from the file's header."""
        return image_size(self.path(name))

    def read(self, name: str) -> bytes:
        """Return the file's bytes."""
        return read_content(self.path(name))


def open_store(root: str | Path, backend: str, key: str) -> ImageStore:
    """Open the images below ``root``.

    Args:
        root: A folder of images, or an LMDB folder.
        backend: ``disk`` or ``lmdb``.
        key: Option that names ``root``, for the error message.
    """
    if backend == "lmdb":
        from basicsr_quant.data.lmdb import LmdbStore

        return LmdbStore(root, key)
    if backend == "disk":
        return FolderStore(root, key)
    raise UserError(f"{key}: io_backend '{backend}' is unknown; choose disk or lmdb")
