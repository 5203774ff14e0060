"""Image databases in BasicSR's layout: ``NAME.lmdb/{data.mdb, lock.mdb, meta_info.txt}``.

A line of meta_info.txt is ``baby.png (512,512,3) 1``: file name, (height, width, channels), PNG compression level. The
key in the database is the stem, the value the encoded PNG.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from basicsr_quant.errors import UserError
from basicsr_quant.io.images import Image, encode_image

META_FILE = "meta_info.txt"
PNG_COMPRESSION = 1
IMAGES_PER_COMMIT = 64
_LINE = re.compile(r"(?P<file>[^\0]+) \((?P<height>\d+), ?(?P<width>\d+), ?(?P<channels>\d+)\) (?P<compression>\d+)")


def _import_lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise UserError("io_backend lmdb needs the package lmdb; install it with: pip install lmdb") from error
    return lmdb


class LmdbStore:
    """The images of one LMDB folder, by stem, sorted; each process opens the database for itself.

    Args:
        root: The folder ``NAME.lmdb``.
        key: Option that names it, for the error message.

    Raises:
        UserError: The folder or its meta_info.txt is missing, empty or unreadable.
    """

    def __init__(self, root: str | Path, key: str) -> None:
        self.root = Path(root)
        meta = self.root / META_FILE
        if not meta.is_file():
            raise UserError(f"{key}: '{meta}' does not exist; with io_backend lmdb this names a folder made by "
                            "prepare-data --lmdb")
        self._sizes: dict[str, tuple[int, int]] = {}
        for number, line in enumerate(meta.read_text(encoding="utf-8").splitlines(), start=1):
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise UserError(f"{key}: line {number} of '{meta}' is not 'NAME.png (height,width,channels) "
                                "compression'; make it again with prepare-data --lmdb")
            self._sizes[Path(match["file"]).stem] = (int(match["height"]), int(match["width"]))
        if not self._sizes:
            raise UserError(f"{key}: '{meta}' names no image; make it again with prepare-data --lmdb")
        self.names = sorted(self._sizes)
        self._environment: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_environment": None}

    def path(self, name: str) -> str:
        """Return ``FOLDER.lmdb/NAME``."""
        return str(self.root / name)

    def size(self, name: str) -> tuple[int, int]:
        """Return (height, width) as meta_info.txt gives it."""
        return self._sizes[name]

    def read(self, name: str) -> bytes:
        """Return the encoded image.

        Raises:
            UserError: The database is damaged or has no such image.
        """
        if self._environment is None or self._environment[0] != os.getpid():
            library = _import_lmdb()
            try:
                opened = library.open(str(self.root), readonly=True, lock=False, readahead=False, meminit=False)
            except library.Error as error:
                raise UserError(f"cannot open the image database '{self.root}': {error}") from error
            self._environment = (os.getpid(), opened)
        with self._environment[1].begin(write=False) as transaction:
            content = transaction.get(name.encode())
        if content is None:
            raise UserError(f"'{self.root}' has no image '{name}' although its {META_FILE} names it; make it again "
                            "with prepare-data --lmdb")
        return bytes(content)


def write_lmdb(root: str | Path, images: Iterable[tuple[str, Image]], map_size: int = 2**40) -> None:
    """Write images as an LMDB folder; an existing one is replaced when the new one is complete.

    Args:
        root: ``NAME.lmdb``.
        images: (stem, uint8 RGB (H, W, 3)); any order.
        map_size: Upper limit of the database in bytes (address space only, the file grows as needed).

    Raises:
        UserError: The operating system refused.
    """
    library = _import_lmdb()
    root = Path(root)
    temporary = root.with_name(f".{root.name}.{secrets.token_hex(4)}.tmp")
    lines = {}
    try:
        temporary.mkdir(parents=True)
        with library.open(str(temporary), map_size=map_size) as environment:
            transaction = environment.begin(write=True)
            for name, image in images:
                transaction.put(name.encode(), encode_image(image, ".png", PNG_COMPRESSION))
                lines[name] = f"{name}.png ({image.shape[0]},{image.shape[1]},3) {PNG_COMPRESSION}\n"
                if len(lines) % IMAGES_PER_COMMIT == 0:
                    transaction.commit()
                    transaction = environment.begin(write=True)
            transaction.commit()
        (temporary / META_FILE).write_text("".join(lines[name] for name in sorted(lines)), encoding="utf-8")
        former = root.with_name(f"{temporary.name}.former")
        if root.exists():
            root.rename(former)
        temporary.rename(root)
        shutil.rmtree(former, ignore_errors=True)
    except (OSError, library.Error) as error:
        raise UserError(f"cannot write image database '{root}': {error}; free space or choose another") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
