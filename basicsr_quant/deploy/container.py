"""The bytes of a packed file: tensors and facts in the safetensors format, with a digest over all of it.

The same content always gives the same bytes: keys are sorted, and nothing says when or where the file was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import SAFETENSORS_HEADER_LIMIT

FORMAT_VERSION = 1
ALIGNMENT = 8
LENGTH_BYTES = 8
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
_NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class Content:
    """What a packed file holds.

    Attributes:
        facts: Plain types: model type, options, and what they do not say.
        tensors: Name -> tensor on the CPU.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def payload_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def to_bytes(content: Content) -> bytes:
    """Return the file's bytes.

    Raises:
        UserError: A tensor has a dtype that packed files do not hold.
    """
    for name, tensor in content.tensors.items():
        if tensor.dtype not in _NAMES:
            raise UserError(f"'{name}' has dtype {tensor.dtype}, which a packed file cannot hold")
    order = sorted(content.tensors, key=lambda name: (-content.tensors[name].element_size(), name))
    pieces = [_raw(content.tensors[name]) for name in order]
    header: dict[str, Any] = {}
    begin = 0
    for name, piece in zip(order, pieces, strict=True):
        tensor = content.tensors[name]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [begin, begin + len(piece)]}
        begin += len(piece)
    facts = _compact(content.facts)
    metadata = {"format_version": str(FORMAT_VERSION), "facts": facts}
    metadata["sha256"] = _digest(facts, header, pieces)
    text = _compact({"__metadata__": metadata, **header}).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return b"".join([len(text).to_bytes(LENGTH_BYTES, "little"), text, *pieces])


def read(path: str | Path) -> Content:
    """Read and verify a packed file.

    Raises:
        UserError: The file is missing, truncated, damaged, altered, not a packed file, or of another version.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > min(SAFETENSORS_HEADER_LIMIT, path.stat().st_size):
                raise UserError(f"'{path}' is truncated, damaged or no packed model; restore it from a copy")
            head, data = file.read(length), bytearray(file.read())
    except OSError as error:
        raise UserError(f"cannot read the packed model '{path}': {error.strerror or error}; check the path after -w"
                        ) from error
    try:
        header = json.loads(head)
        metadata = header.pop("__metadata__")
        version, facts, digest = metadata["format_version"], metadata["facts"], metadata["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is no packed model, or damaged; make one with 'python -m basicsr_quant pack', or "
                        "give its option file by -opt") from error
    if version != str(FORMAT_VERSION):
        raise UserError(f"'{path}' has format version {version}, this program reads version {FORMAT_VERSION}; pack the "
                        "model again or use the program that made it")
    try:
        spans = {name: _span(entry, len(data)) for name, entry in header.items()}
        view = memoryview(data)
        ordered = [view[begin:end] for begin, end in sorted(span[2:] for span in spans.values())]
        if _digest(facts, header, ordered) != digest or sum(map(len, ordered)) != len(data):
            raise ValueError("digest")
        tensors = {name: _tensor(view[begin:end], dtype, shape) for name, (dtype, shape, begin, end) in spans.items()}
        plain = json.loads(facts)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"'{path}' is truncated, damaged or was altered: its content does not match its digest; "
                        "restore it from a copy") from error
    return Content(plain, tensors)


def is_packed(path: str | Path) -> bool:
    """Whether a file is a packed model, whole or damaged, and not a plain file of weights."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return False
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            head = file.read(min(length, SAFETENSORS_HEADER_LIMIT))
    except OSError:
        return False
    return b'"format_version"' in head and b'"facts"' in head


def _span(entry: Mapping[str, Any], size: int) -> tuple[torch.dtype, list[int], int, int]:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= size:
        raise ValueError("offsets")
    return TYPES[entry["dtype"]], [int(side) for side in entry["shape"]], begin, end


def _tensor(view: memoryview, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    values = torch.frombuffer(view, dtype=dtype) if len(view) else torch.empty(0, dtype=dtype)
    return values.view(shape)


def _raw(tensor: torch.Tensor) -> memoryview:
    values: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(values)


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _digest(facts: str, header: Mapping[str, Any], pieces: list[memoryview]) -> str:
    digest = hashlib.sha256(facts.encode())
    digest.update(_compact(header).encode())
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
