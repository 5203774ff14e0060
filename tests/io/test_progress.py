"""Progress bars and progress lines."""

from __future__ import annotations

import logging

import pytest

from basicsr_quant.io import progress


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress.track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert "letters" in terminal.text and "3/3" in terminal.text


def test_lines_elsewhere(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 4))
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    with caplog.at_level(logging.INFO):
        assert list(progress.track(range(10), "numbers", interval=12)) == list(range(10))
    lines = [record.getMessage() for record in caplog.records if record.name == progress.__name__]
    assert lines == ["numbers: 1/10 (10%), 00:08 elapsed, 01:12 left", "numbers: 4/10 (40%), 00:20 elapsed, 00:30 left",
                     "numbers: 7/10 (70%), 00:32 elapsed, 00:13 left"]


def test_short_work_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert sum(progress.track([1, 2, 3], "sum")) == 6
    assert not caplog.records


@pytest.mark.parametrize(("done", "total", "expected"), [
    (0, 5, "x: 0/5 (0%), 00:10 elapsed, unknown time left"),
    (4, None, "x: 4, 00:10 elapsed"),
])
def test_line(done: int, total: int | None, expected: str) -> None:
    assert progress.progress_line("x", done, total, 10) == expected
