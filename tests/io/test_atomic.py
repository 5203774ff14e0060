"""Atomic writes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import remove_leftovers, save_torch, write_bytes, write_text


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "grün")
    assert path.read_bytes() == "grün".encode()
    write_bytes(str(path), memoryview(b"other"))
    assert path.read_bytes() == b"other"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_save_torch_returns_what_is_in_the_file(tmp_path: Path) -> None:
    content = {"weight": torch.arange(4.0), "facts": {"n": 3}}
    written = save_torch(tmp_path / "file.pth", content)
    assert (tmp_path / "file.pth").read_bytes() == written
    assert save_torch(tmp_path / "other.pth", content) == written  # the same content gives the same bytes


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_refused_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str,
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(UserError, match=r"cannot write '.*file': No space left on device; .* is intact"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "file" / "below", b"")


def test_folder_that_cannot_be_flushed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    write_bytes(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_readers_see_old_or_new(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", {letter * 200_000 for letter in (b"a", b"b")}
    write_bytes(path, next(iter(contents)))
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            for content in contents:
                write_bytes(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in contents
    writer.join()


def test_leftovers(tmp_path: Path) -> None:
    kept = {"net.pth", ".hidden", "net.pth.tmp", ".net.tmp"}
    for name in (*kept, ".net.pth.01ab23cd.tmp"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == kept
    remove_leftovers(tmp_path / "nowhere")
