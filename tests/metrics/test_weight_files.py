"""Where weights are looked for, and that a refused download touches no other thread."""

from __future__ import annotations

import socket
import threading
import types
from pathlib import Path

import pytest
import torch

from basicsr_quant.errors import UserError
from basicsr_quant.metrics.weight_files import WeightFile, locate, no_downloads, replaced

FILE = WeightFile("some.pth", "checkpoints")


def test_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    cached, local = tmp_path / "hub" / "checkpoints" / "some.pth", tmp_path / "mine" / "some.pth"
    for path in (cached, local):
        path.parent.mkdir(parents=True)
        path.touch()
    other = local.with_name("other.pth")
    other.touch()
    assert locate("m", FILE, None) == cached
    assert locate("m", FILE, str(local.parent)) == local
    assert locate("m", FILE, str(other)) == other
    assert locate("m", FILE, str(other), is_main=False) == local
    local.unlink()
    assert locate("m", FILE, str(other), is_main=False) == cached
    cached.unlink()
    with pytest.raises(UserError, match=f"metric 'm' needs the file 'some.pth'.*{cached}"):
        locate("m", FILE, None)


def test_downloads_are_refused_in_this_thread_only() -> None:
    original = socket.getaddrinfo
    outcomes: list[object] = []
    with no_downloads("m"):
        with pytest.raises(UserError, match="'a.pth'.*put it at '/x/a.pth'"):
            torch.hub.download_url_to_file("https://example.org/b/a.pth?x=1", "/x/a.pth")
        with pytest.raises(UserError, match="file from example.org"):
            socket.create_connection(("example.org", 443))
        thread = threading.Thread(target=lambda: outcomes.append(socket.getaddrinfo("127.0.0.1", 80)))
        thread.start()
        thread.join()
    assert len(outcomes) == 1 and socket.getaddrinfo is original


def test_replacement_ends_with_an_error() -> None:
    module = types.ModuleType("m")
    vars(module)["function"] = function = lambda: 1
    with pytest.raises(KeyError), replaced(module, "function", lambda: 2):
        assert module.function() == 2
        raise KeyError
    assert module.function is function
