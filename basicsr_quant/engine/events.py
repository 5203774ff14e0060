"""A log for TensorBoard, written at once, so that a full disk is noticed where it can be said."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from basicsr_quant.errors import WriteError

ADVICE = "free space, or set path:tb_root to another folder or logger:use_tb_logger=false"


class EventFile:
    """A file of scalars in TensorBoard's format.

    Args:
        folder: Where it is made, under a name of its own.

    Raises:
        ImportError: TensorBoard is not installed.
        WriteError: The operating system refused.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        self._event = Event
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise WriteError.of(f"the TensorBoard log in '{folder}'", error, ADVICE) from error
        self._records = RecordWriter(self)
        self._add(file_version="brain.Event:2")

    def write(self, record: bytes) -> None:
        """Append bytes, all of them.

        Raises:
            WriteError: The operating system refused.
        """
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as error:
            raise WriteError.of(f"the TensorBoard log '{self._path}'", error, ADVICE) from error

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Append named numbers of one iteration."""
        named = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self._add(step=iteration, summary={"value": named})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **content: object) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
