"""Progress with the time left: a bar on a terminal, otherwise a line in the log now and then."""

from __future__ import annotations

import logging
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

FIRST_LINE_SECONDS = 5.0
Item = TypeVar("Item")


def track(
    iterable: Iterable[Item], description: str, total: int | None = None, interval: float = 30.0,
) -> Iterator[Item]:
    """Yield the items and show how far it is and how long it will take.

    On a terminal a tqdm bar on stderr; elsewhere the first line is logged after 5 seconds and one every ``interval``
    from then on, so that short work leaves no trace.

    Args:
        iterable: What to go through.
        description: What is being done, in two or three words.
        total: Number of items; None = ask the iterable.
        interval: Seconds between two lines of the log.
    """
    if total is None:
        total = operator.length_hint(iterable) or None
    if sys.stderr.isatty():
        yield from tqdm(iterable, desc=description, total=total, dynamic_ncols=True, file=sys.stderr)
        return
    start = time.monotonic()
    due = min(FIRST_LINE_SECONDS, interval)
    for done, item in enumerate(iterable):
        elapsed = time.monotonic() - start
        if elapsed >= due:
            logger.info("%s", progress_line(description, done, total, elapsed))
            due = elapsed + interval
        yield item


def reporter(description: str, interval: float = 30.0) -> Callable[[int, int], None]:
    """Return a function of (done, total) that logs the progress after 5 seconds, then now and then, and at the end.

    Args:
        description: What is being done, in two or three words.
        interval: Seconds between two lines of the log.
    """
    start = time.monotonic()
    due = [min(FIRST_LINE_SECONDS, interval)]

    def report(done: int, total: int) -> None:
        elapsed = time.monotonic() - start
        if elapsed >= due[0] or done == total:
            logger.info("%s", progress_line(description, done, total, elapsed))
            due[0] = elapsed + interval

    return report


def progress_line(description: str, done: int, total: int | None, elapsed: float) -> str:
    """Return ``description: done/total (percent), time elapsed, time left``.

    Args:
        description: What is being done.
        done: Items that are finished.
        total: All items, or None if unknown.
        elapsed: Seconds so far.
    """
    spent = tqdm.format_interval(elapsed)
    if not total:
        return f"{description}: {done}, {spent} elapsed"
    left = tqdm.format_interval(elapsed / done * (total - done)) if done else "unknown time"
    return f"{description}: {done}/{total} ({done / total:.0%}), {spent} elapsed, {left} left"
