"""Files that are damaged, altered or of another version: one line, and nothing executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from basicsr_quant.deploy.container import Content, is_packed, read, to_bytes
from basicsr_quant.deploy.unpack import unpack
from basicsr_quant.errors import UserError

CONTENT = Content({"b": [1, 2.5, None], "a": {"y": "text", "x": True}}, {
    "codes": torch.arange(7, dtype=torch.uint8), "scales": torch.tensor([0.1, -2.0]),
    "weight": torch.randn(2, 3).half(), "empty": torch.empty(0), "number": torch.tensor(3)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_bytes(CONTENT))
    return path


def test_what_is_written_is_read(file: Path) -> None:
    found = read(file)
    assert found.facts == CONTENT.facts and is_packed(file)
    assert found.tensors.keys() == CONTENT.tensors.keys()
    for name, tensor in CONTENT.tensors.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype
    assert to_bytes(found) == file.read_bytes()


def test_any_safetensors_reader_reads_it(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == set(CONTENT.tensors)
        assert torch.equal(opened.get_tensor("scales"), CONTENT.tensors["scales"])
        assert json.loads(opened.metadata()["facts"]) == CONTENT.facts


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = to_bytes(CONTENT)
    path = tmp_path_factory.mktemp("damage") / "model.safetensors"
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1:]
    path.write_bytes(damaged)
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_another_version(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"format_version":"1"', b'"format_version":"7"'))
    with pytest.raises(UserError, match="format version '7', this program reads version '1'"):
        read(file)


def test_facts_that_are_none_of_a_model(file: Path) -> None:
    with pytest.raises(UserError, match="lacks the facts"):
        unpack(file)


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\xff" * 64, b"\2\0\0\0\0\0\0\0{}"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    assert not is_packed(path)
    with pytest.raises(UserError):
        read(path)
