"""A packed model that was damaged, or altered and signed again: one line, and nothing else happens."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_swinir import tiny_packed

from basicsr_quant.deploy.container import Content, read, to_bytes
from basicsr_quant.deploy.pack import pack_frozen
from basicsr_quant.deploy.unpack import unpack
from basicsr_quant.errors import UserError

LEAVES = st.sampled_from([None, True, -1, 0, 3, 2**40, 2.5, "text", "spandrel", [], {}, [[1]], {"a": 1}])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tampering")


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    return tiny_packed(folder)


@pytest.fixture(scope="module")
def content(folder: Path, whole: bytes) -> Content:
    (folder / "whole.safetensors").write_bytes(whole)
    return read(folder / "whole.safetensors")


def refused(folder: Path, data: bytes) -> str:
    path = folder / "altered.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        unpack(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_anywhere_is_noticed(folder: Path, whole: bytes, data: st.DataObject) -> None:
    header = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.one_of(st.integers(0, 7), st.integers(8, header - 1), st.integers(header, len(whole) - 1)))
    kind = data.draw(st.sampled_from(["flip", "truncate", "insert", "delete", "append"]))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    damaged = {"flip": whole[:place] + bytes([other]) + whole[place + 1:], "truncate": whole[:place],
               "insert": whole[:place] + bytes([other]) + whole[place:], "delete": whole[:place] + whole[place + 1:],
               "append": whole + bytes([other])}[kind]
    refused(folder, damaged)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of everything inside a nested value."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*place, key))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_altered_facts_are_a_model_or_an_error_of_one_line(folder: Path, content: Content,
                                                           data: st.DataObject) -> None:
    facts: Any = copy.deepcopy(content.facts)
    place = data.draw(st.sampled_from(list(leaves(facts))))
    block = facts
    for key in place[:-1]:
        block = block[key]
    block[place[-1]] = data.draw(LEAVES)
    path = folder / "altered.safetensors"
    path.write_bytes(to_bytes(Content(facts, content.tensors)))
    try:
        unpack(path)
    except UserError as error:
        assert "\n" not in str(error)


def altered(content: Content, name: str, tensor: torch.Tensor | None) -> bytes:
    tensors = {**content.tensors, name: tensor}
    return to_bytes(Content(content.facts, {key: value for key, value in tensors.items() if value is not None}))


@pytest.mark.parametrize(("name", "change", "message"), [
    ("codes", lambda codes: codes[:-1], "bytes of codes"),
    ("codes", lambda codes: codes.int(), "bytes of codes"),
    ("codes", lambda codes: None, "bytes of codes"),
    ("scales", lambda scales: scales.view(2, -1), "scales and bounds"),
    ("scales", lambda scales: scales * torch.nan, "not finite"),
    ("zeros", lambda zeros: torch.tensor([0]), "ascending places among 0 signs"),
    ("conv_first.weight", lambda weight: weight.transpose(0, 1), "has shape"),
    ("conv_first.weight", lambda weight: weight.long(), "has dtype"),
    ("conv_first.weight", lambda weight: weight * torch.inf, "NaN or infinite"),
    ("conv_first.weight", lambda weight: None, "'conv_first.weight' is missing"),
    ("more", lambda more: torch.zeros(3), "'more' is not part"),
    ("buffer:mean", lambda mean: torch.zeros(3), "1-dimensional torch.float32, expected 4-dimensional"),
    ("buffer:mean", lambda mean: torch.zeros(1, 3, 1, 1).half(), "expected 4-dimensional torch.float32"),
    ("buffer:forward", lambda forward: torch.zeros(3), "'forward' is not part"),
])
def test_altered_tensors(folder: Path, content: Content, name: str, change: Any, message: str) -> None:
    assert message in refused(folder, altered(content, name, change(content.tensors.get(name))))


def test_a_sound_file_packs_to_its_own_bytes(folder: Path, whole: bytes, content: Content) -> None:
    packed = unpack(folder / "whole.safetensors")
    assert pack_frozen(packed.network, packed.facts)[0] == whole


def with_header(whole: bytes, change: Any) -> bytes:
    """A file whose header was changed, and not signed again."""
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    change(header)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + whole[end:]


@pytest.mark.parametrize("change", [
    lambda header: header["codes"].update(shape=[-1]),
    lambda header: header["codes"].update(shape=[2.0]),
    lambda header: header["codes"].update(data_offsets=[0, 10**30]),
    lambda header: header["codes"].update(data_offsets=[True, 3]),
    lambda header: header["codes"].update(dtype="U7"),
    lambda header: header["scales"].update(data_offsets=header["conv_first.weight"]["data_offsets"]),
    lambda header: header.update(more=5),
    lambda header: header["__metadata__"].update(more="text"),
    lambda header: header["__metadata__"].update(sha256=7),
    lambda header: header["__metadata__"].update(facts=["no text"]),
])
def test_headers_that_contradict_themselves(folder: Path, whole: bytes, change: Any) -> None:
    refused(folder, with_header(whole, change))


def test_headers_that_are_too_large_or_too_deep(folder: Path, whole: bytes) -> None:
    size = 17 * 2**20
    assert "truncated, damaged" in refused(folder, size.to_bytes(8, "little") + b" " * (size + 8))
    text = b'{"__metadata__":' + b"[" * 100_000
    assert "no packed model" in refused(folder, len(text).to_bytes(8, "little") + text)
    assert "format version" in refused(folder, with_header(
        whole, lambda header: header["__metadata__"].update(format_version="2")))
