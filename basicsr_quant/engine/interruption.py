"""SIGINT and SIGTERM: finish what was begun, save, and say so."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

logger = logging.getLogger("basicsr_quant")


class Interrupted(Exception):
    """SIGINT or SIGTERM came; what was begun was finished and saved.

    Args:
        received: Signal numbers that came to this process; none if another process got one.
        advice: What was saved and how to go on.
    """

    def __init__(self, received: Sequence[int], advice: str = "the state was saved, go on with --auto_resume") -> None:
        number = received[0] if received else signal.SIGTERM
        super().__init__(signal.Signals(number).name)
        self.exit_code, self.advice = 128 + number, advice


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying; a second one is obeyed at once.

    Forked loader workers inherit the handler and ignore the signals; their parent ends them.
    """
    received: list[int] = []
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            return
        if received:
            raise KeyboardInterrupt
        received.append(number)
        logger.warning("%s: finishing this iteration, then saving", signal.Signals(number).name)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
