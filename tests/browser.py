"""Chromium without a window, driven over a pipe by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio",
         "--remote-debugging-pipe", "about:blank")
PATIENCE = 60.0
KEYS = {"+": ("+", 187), "0": ("0", 48), "ArrowLeft": ("", 37), "ArrowRight": ("", 39), "Home": ("", 36),
        "End": ("", 35), "Tab": ("", 9), "Enter": ("\r", 13)}


def find_browser() -> str:
    """Path of a Chromium; without one the test is skipped."""
    for name in NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is on PATH")


class Browser:
    """One tab.

    Attributes:
        problems: Console errors and uncaught exceptions.
        requests: Addresses that were asked for.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._buffer, self._number, self._session = b"", 0, ""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(deadline - time.monotonic(), 0))
            part = os.read(self._reader, 1 << 20) if ready else b""
            assert part, "the browser has stopped or does not answer"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, given = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.problems.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.problems.append(str(given["entry"]))

    def screen(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window in CSS pixels and the colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        """Load a file and wait until its images are there."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")
        self.settle()

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.05)

    def settle(self) -> None:
        """Wait until every image is decoded and everything was drawn twice."""
        self.wait_for("[...document.images].every((image) => image.complete)")
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def centre(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view and return its centre."""
        x, y = self.evaluate(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.scrollIntoView({{block: "
            "'center'}); const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height "
            "/ 2]; })()")
        return x, y

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send a mouse event: ``Pressed``, ``Moved``, ``Released`` or ``Wheel``."""
        button, held = ("none", 0) if kind == "Wheel" else ("left", int(kind != "Released"))
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button=button, buttons=held, clickCount=1,
                  **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at one point, move in steps and release at another."""
        self.mouse("Pressed", *start)
        for part in (0.25, 0.5, 0.75, 1.0):
            self.mouse("Moved", *(a + part * (b - a) for a, b in zip(start, end, strict=True)))
        self.mouse("Released", *end)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        place = self.centre(selector)
        self.mouse("Pressed", *place)
        self.mouse("Released", *place)

    def key(self, name: str) -> None:
        """Press and release a key."""
        text, code = KEYS[name]
        common = {"key": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select as a user does."""
        self.evaluate(f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.value = "
                      f"{json.dumps(value)}; node.dispatchEvent(new Event('change', {{bubbles: true}})); }})()")
        self.settle()

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def opened(program: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with a profile folder of its own, and end it."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()

    def ends_in_place() -> None:
        low, high = os.dup(from_us), os.dup(to_us)
        os.dup2(low, 3)
        os.dup2(high, 4)

    with open(profile.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen([program, *FLAGS[:-1], f"--user-data-dir={profile}", FLAGS[-1]], pass_fds=(3, 4),
                                   preexec_fn=ends_in_place, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    os.close(from_us)
    os.close(to_us)
    try:
        yield Browser(from_browser, to_browser)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_browser)
        os.close(from_browser)
