"""Writing a file so that readers see the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from basicsr_quant.errors import WriteError


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path``: temporary file in the same folder, fsync, rename.

    Raises:
        WriteError: The operating system refused (no space, file-size limit, read-only folder). ``path`` keeps its
            former content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError.of(f"'{path}'", error, "free space or choose another folder, what was there before is "
                            "intact") from error
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: str | Path, name: str = "*") -> None:
    """Delete the temporary files that a process left in ``folder`` when it was killed while writing ``name``."""
    for path in Path(folder).glob(f".{name}.????????.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, content: str) -> None:
    """Write text as UTF-8, as ``write_bytes`` does."""
    write_bytes(path, content.encode())


def save_torch(path: str | Path, content: Any) -> bytes:
    """Serialize tensors and plain Python types with ``torch.save`` and write them at once; return the bytes written."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())
    return buffer.getvalue()
