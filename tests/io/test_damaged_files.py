"""Files of weights, damaged or hostile: one line that names them, or no harm; never a traceback, never code."""

from __future__ import annotations

import io
import math
import os
import pickle
import random
import struct
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import load_file, load_state_dict

CONTENT = {"params": {"conv.weight": torch.arange(12.0).reshape(3, 4), "conv.bias": torch.tensor([1.0, -1.0])},
           "metadata": {"iteration": 4, "model_type": "SRModel"}}
KINDS = ("archive", "old", "safetensors")
SIXTEENTHS = [part / 16 for part in range(16)]


def made(folder: Path, kind: str, content: dict[str, Any] = CONTENT) -> Path:
    """A sound file of weights."""
    path = folder / ("sound.safetensors" if kind == "safetensors" else "sound.pth")
    if kind == "safetensors":
        save_file(content["params"], path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    return path


def outcome(path: Path, data: bytes) -> Any:
    """What a file of these bytes gives: its content, or None and one line that names it."""
    path.write_bytes(data)
    try:
        content = load_file(path)
        load_state_dict(path)
    except UserError as error:
        text = str(error)
        assert path.name in text and "\n" not in text and len(text) < 400, text
        return None
    return content


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_at_every_sixteenth(tmp_path: Path, kind: str) -> None:
    data = made(tmp_path, kind).read_bytes()
    path = tmp_path / ("cut" + (".safetensors" if kind == "safetensors" else ".pth"))
    for length in [*(int(part * len(data)) for part in SIXTEENTHS), len(data) - 1]:
        assert outcome(path, data[:length]) is None, length


def assert_flips_are_noticed(folder: Path, kind: str, bits: Iterator[int], data: bytes) -> None:
    """Archives carry a checksum for each record; of the other kinds, only what cannot be is noticed."""
    path = folder / ("flipped" + (".safetensors" if kind == "safetensors" else ".pth"))
    sound, noticed = outcome(path, data), 0
    for bit in bits:
        found = outcome(path, flipped(data, bit))
        noticed += found is None
        assert found is None or kind != "archive" or equal(found["params"], sound["params"]), bit
    assert noticed


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit(tmp_path: Path, kind: str) -> None:
    data = made(tmp_path, kind).read_bytes()
    draw = random.Random(8)
    assert_flips_are_noticed(tmp_path, kind, (draw.randrange(8 * len(data)) for _ in range(120)), data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_flipped(tmp_path: Path, kind: str) -> None:
    data = made(tmp_path, kind).read_bytes()
    assert_flips_are_noticed(tmp_path, kind, iter(range(8 * len(data))), data)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def hostile_files(folder: Path) -> Iterator[Path]:
    """Code in each layout that torch has ever read."""
    content = {"params": {"weight": Hostile(folder / "it_ran")}, "lq": Hostile(folder / "it_ran")}
    for kind in ("archive", "old"):
        yield made(folder, kind, content)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / "plain.pkl").write_bytes(pickle.dumps(content, protocol))
        yield folder / "plain.pkl"
    with tarfile.open(folder / "tar.pth", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Hostile(folder / "it_ran"))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    yield folder / "tar.pth"


def test_pickled_code_never_runs(tmp_path: Path) -> None:
    files = 0
    for path in hostile_files(tmp_path):
        files += 1
        with pytest.raises(UserError, match=path.name):
            load_file(path)
    assert files >= 8 and not (tmp_path / "it_ran").exists()


def test_archive_whose_records_overlap(tmp_path: Path) -> None:
    """Each record is as large as the file, and there are many: small on disk, huge in memory."""
    path = tmp_path / "overlap.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(100_000))
        for number in range(50):
            twin = zipfile.ZipInfo(f"archive/data/{number + 1}")
            twin.file_size = twin.compress_size = archive.filelist[0].file_size
            twin.CRC, twin.header_offset = archive.filelist[0].CRC, archive.filelist[0].header_offset
            archive.filelist.append(twin)
    with pytest.raises(UserError, match="overlapping records"):
        load_file(path)


def test_record_marked_as_a_folder(tmp_path: Path) -> None:
    """Torch would read nothing, say nothing, and leave the tensor as the memory was."""
    data = made(tmp_path, "archive").read_bytes()
    attributes = data.rindex(b"sound/data/0") - 8  # of the entry in the archive's table
    (tmp_path / "marked.pth").write_bytes(flipped(data, 8 * attributes + 4))
    with pytest.raises(UserError, match="record 'sound/data/0' .* is marked as a folder"):
        load_file(tmp_path / "marked.pth")


def test_archive_that_only_torch_takes_for_one(tmp_path: Path) -> None:
    """It is checked all the same."""
    (tmp_path / "odd.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match="BadZipFile"):
        load_file(tmp_path / "odd.pth")


@pytest.mark.parametrize("tensor", [
    torch.zeros(1).expand(2**40), torch.zeros(1).as_strided((2**20, 2**20), (0, 0)),
    torch.ones(3).to_sparse(), torch.empty(3, device="meta"),
], ids=["expanded", "strided", "sparse", "meta"])
def test_tensors_that_are_no_plain_ones(tmp_path: Path, tensor: torch.Tensor) -> None:
    """Those of 4 TB would exhaust the memory at the first operation."""
    torch.save({"params": {"weight": tensor}}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="odd.pth.*(more memory|not dense)"):
        load_file(tmp_path / "odd.pth")


def test_nested_content_is_looked_through_once(tmp_path: Path) -> None:
    content: Any = [torch.ones(2)]
    for _ in range(60):
        content = [content, content]
    torch.save({"params": {"weight": torch.ones(2)}, "extra": content}, tmp_path / "nested.pth")
    assert load_state_dict(tmp_path / "nested.pth")["weight"].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_small_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"weight": torch.ones(3).to(dtype)}, tmp_path / "small.safetensors")
    assert load_state_dict(tmp_path / "small.safetensors")["weight"].float().tolist() == [1, 1, 1]
    save_file({"weight": torch.tensor([math.nan]).to(dtype)}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="NaN"):
        load_state_dict(tmp_path / "nan.safetensors")


def test_safetensors_header_of_100_megabytes(tmp_path: Path) -> None:
    """The header is there; it is not read."""
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100 * 2**20) + b'{"__metadata__":{"a":"')
        file.truncate(100 * 2**20 + 8)
    began = time.process_time()
    with pytest.raises(UserError, match=f"'{path}' declares a header of {100 * 2**20} bytes"):
        load_file(path)
    assert time.process_time() - began < 0.5
