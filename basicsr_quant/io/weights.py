"""Reading weights as data only, noticing damage, and saying which layer does not fit."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr_quant.errors import UserError

SAFETENSORS_HEADER_LIMIT = 16 * 2**20
ARCHIVE_BEGINNING = b"PK\x03\x04"
"""By which torch knows an archive."""
FOLDER_MARK = 0x10
"""Of a record that torch takes for a folder: it reads nothing and leaves the tensor as the memory was."""


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal.

    Raises:
        UserError: The operating system refused to read it.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}; restore it from a copy") from error


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinite values; one of integers never does."""
    if not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.itemsize == 1 else tensor  # torch does not ask 8-bit floats
    return bool(torch.isfinite(wide).all())


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinite values, or None."""
    return next((name for name, tensor in named if not is_finite(tensor)), None)


def _is_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(ARCHIVE_BEGINNING)) == ARCHIVE_BEGINNING or zipfile.is_zipfile(path)


def _check_archive(path: Path) -> None:
    """Verify the checksum of every record; torch itself reads damaged records without a word."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(
                entry.file_size for entry in entries) > path.stat().st_size:
            raise UserError(f"'{path}' holds compressed or overlapping records, which no torch checkpoint does; not "
                            "read")
        folders = (entry.filename for entry in entries if entry.external_attr & FOLDER_MARK)
        damaged = archive.testzip() or next(folders, None)
    if damaged is not None:
        raise UserError(f"'{path}' is damaged: record '{damaged}' fails its checksum or is marked as a folder; restore "
                        "it from a copy")


def _check_tensors(path: Path, content: Any) -> None:
    """Refuse tensors without values of their own, and those that would take more memory than the file has bytes."""
    waiting, seen = [content], set[int]()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, (list, tuple, set)):
            waiting += item
        elif isinstance(item, torch.Tensor):
            if item.layout != torch.strided or item.device.type != "cpu" or item.is_quantized:
                raise UserError(f"'{path}' holds a tensor that is not dense (sparse, quantized or without values); "
                                "save the state dict with dense tensors")
            if item.numel() * item.element_size() > path.stat().st_size:
                raise UserError(f"'{path}' declares a tensor of shape {tuple(item.shape)}, which takes more memory "
                                "than the file has bytes; not read")


def load_file(path: str | Path) -> Any:
    """Read a ``.safetensors`` file or a torch checkpoint, tensors on the CPU; pickled code is never run.

    Raises:
        UserError: The file is missing, empty, truncated, damaged, or holds anything but tensors and plain types.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights file '{path}' does not exist; check the path option that names it")
    if path.stat().st_size == 0:
        raise UserError(f"'{path}' is empty; restore it from a copy")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        if _is_archive(path):
            _check_archive(path)
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(path, content)
        return content
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if not re.search("global|class", str(error).rpartition("WeightsUnpickler error:")[2], re.IGNORECASE):
            raise UserError(f"'{path}' is damaged or no torch checkpoint; restore it from a copy") from error
        raise UserError(f"'{path}' holds pickled objects other than tensors and plain types; they were not run. "
                        "Save the state dict alone") from error
    except Exception as error:
        raise UserError(f"'{path}' is truncated, damaged or no torch checkpoint "
                        f"({type(error).__name__}); restore it from a copy") from error


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file as load_safetensors

    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(SAFETENSORS_HEADER_LIMIT, path.stat().st_size):
            raise UserError(f"'{path}' declares a header of {header} bytes; it is truncated, damaged or hostile, and "
                            "was not read; restore it from a copy")
        return load_safetensors(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"'{path}' is truncated, damaged or no safetensors file; restore it from a copy") from error


def load_state_dict(path: str | Path, key: str | None = None) -> dict[str, torch.Tensor]:
    """Read a state dict.

    Args:
        path: ``.safetensors`` or torch checkpoint.
        key: Entry of the checkpoint that holds the state dict. If it is None, ``params_ema`` and then ``params`` are
            tried; a flat file is taken whole. A ``module.`` prefix is removed.

    Raises:
        UserError: See :func:`load_file`; also if there is no state dict inside, or a weight is NaN or infinite.
    """
    content = load_file(path)
    if isinstance(content, Mapping):
        nested = [name for name, value in content.items() if isinstance(value, Mapping)]
        if key is not None and nested and key not in content:
            raise UserError(f"'{path}' has no entry '{key}'; it has {', '.join(map(str, nested))}")
        for candidate in (key, "params_ema", "params", "state_dict"):
            if candidate is not None and isinstance(content.get(candidate), Mapping):
                content = content[candidate]
                break
    if not isinstance(content, Mapping) or not content or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()):
        raise UserError(f"'{path}' holds no state dict (a map of names to tensors); choose another file")
    state = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    name = first_not_finite(state.items())
    if name is not None:
        raise UserError(f"'{path}': tensor '{name}' holds NaN or infinite values; restore the file from a copy")
    return state


def apply_state_dict(
    module: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path, strict: bool = True,
) -> None:
    """Copy a state dict into a module.

    Args:
        module: The network.
        state: name -> tensor.
        path: Where the state came from, for the error message.
        strict: If false, names on one side only are passed over; shapes must agree all the same.

    Raises:
        UserError: Names or shapes disagree; the message names the first tensor and counts the rest.
    """
    own = module.state_dict()
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if shapes:
        name = shapes[0]
        raise UserError(f"'{path}' does not fit this network: '{name}' has shape {tuple(state[name].shape)}, expected "
                        f"{tuple(own[name].shape)}{_rest(shapes)}; check the network options")
    if strict:
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        if missing:
            raise UserError(f"'{path}' does not fit this network: '{missing[0]}' is missing{_rest(missing)}; check the "
                            "network options")
        if unexpected:
            raise UserError(f"'{path}' does not fit this network: '{unexpected[0]}' is not part of it"
                            f"{_rest(unexpected)}; check the network options")
    module.load_state_dict({name: tensor for name, tensor in state.items() if name in own}, strict=False)


def _rest(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
