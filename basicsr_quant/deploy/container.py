"""The bytes of a packed file: tensors and facts in the safetensors format, with a digest over all of it.

The same content always gives the same bytes: keys are sorted, and nothing says when or where the file was made.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import SAFETENSORS_HEADER_LIMIT

FORMAT_VERSION = 1
ALIGNMENT = 8
LENGTH_BYTES = 8
METADATA_KEYS = 3
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
    text = _header({"__metadata__": metadata, **header})
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
        canonical = _header(header)
        metadata = header.pop("__metadata__")
        version, facts, digest = metadata["format_version"], metadata["facts"], metadata["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"'{path}' is no packed model, or damaged; make one with 'python -m basicsr_quant pack', or "
                        "give its option file by -opt") from error
    if version != str(FORMAT_VERSION):
        raise UserError(f"'{path}' has format version {str(version)[:20]!r}, this program reads version "
                        f"'{FORMAT_VERSION}'; pack the model again or use the program that made it")
    try:
        spans = {name: _span(entry) for name, entry in header.items()}
        view = memoryview(data)
        pieces = [view[begin:end] for begin, end in _adjoining(spans, len(data))]
        if canonical != head or len(metadata) != METADATA_KEYS or _digest(facts, header, pieces) != digest:
            raise ValueError("digest")
        tensors = {name: _tensor(view[span.begin:span.end], span) for name, span in spans.items()}
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


class _Span(NamedTuple):
    begin: int
    end: int
    dtype: torch.dtype
    shape: list[int]


def _span(entry: Mapping[str, Any]) -> _Span:
    """Return where a tensor is and what it looks like.

    Raises:
        ValueError: Its numbers are no counts, or do not agree with each other.
    """
    (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], TYPES[entry["dtype"]]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("numbers")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("size")
    return _Span(begin, end, dtype, shape)


def _adjoining(spans: Mapping[str, _Span], size: int) -> list[tuple[int, int]]:
    """Return where tensors begin and end, in the order of the file.

    Raises:
        ValueError: There are gaps or overlaps, or the data end elsewhere.
    """
    places = sorted((span.begin, span.end) for span in spans.values())
    if [0, *(end for _, end in places)] != [*(begin for begin, _ in places), size]:
        raise ValueError("places")
    return places


def _tensor(view: memoryview, span: _Span) -> torch.Tensor:
    if span.dtype == torch.bool and max(view, default=0) > 1:
        raise ValueError("truth values")
    values = torch.frombuffer(view, dtype=span.dtype) if len(view) else torch.empty(0, dtype=span.dtype)
    return values.view(span.shape)


def _header(header: Mapping[str, Any]) -> bytes:
    """Return the header's text, filled up with blanks."""
    text = _compact(header).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


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
