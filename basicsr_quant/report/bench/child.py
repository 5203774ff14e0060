"""Measurements in a process of their own, for a peak of memory that belongs to one variant alone."""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import basicsr_quant
from basicsr_quant.errors import UserError

MEGABYTE = 1e6
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Usage:
    """What one variant took.

    Attributes:
        seconds: Of the measured part.
        before_mb: Memory of the process before it, in 10^6 bytes: interpreter, libraries, networks, inputs.
        peak_mb: Highest memory of the process during it; on CUDA highest allocated memory, and ``before_mb`` likewise.
        result: What it returned, in JSON's types.
    """

    seconds: float
    before_mb: float
    peak_mb: float
    result: Any

    @property
    def added_mb(self) -> float:
        """Peak above the level before."""
        return self.peak_mb - self.before_mb


def in_own_process(function: str, arguments: dict[str, Any], environment: dict[str, str]) -> Usage:
    """Call ``module:function(**arguments)`` in a new process.

    The function prepares and returns what is to be measured, a callable without arguments.

    Args:
        function: Where it is.
        arguments: In JSON's types; ``device`` is that of the measurement.
        environment: The whole environment of the process.

    Raises:
        UserError: It failed; what it printed says why.
    """
    request = json.dumps({"function": function, "arguments": arguments, "threads": torch.get_num_threads()})
    done = subprocess.run([sys.executable, "-m", __name__, request], check=False, stdout=subprocess.PIPE, text=True,
                          env=environment, cwd=Path(basicsr_quant.__file__).parents[1])
    if done.returncode:
        raise UserError(f"bench: {function} with {arguments} failed with exit code {done.returncode}; see above")
    return Usage(**json.loads(done.stdout.splitlines()[-1]))


def measure(work: Callable[[], Any], device: torch.device) -> Usage:
    """Run something once and return what it took."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget()
    before = torch.cuda.memory_allocated(device) if cuda else _resident("VmRSS")
    began = time.perf_counter()
    result = work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if cuda else _resident("VmHWM")
    return Usage(seconds, before / MEGABYTE, peak / MEGABYTE, result)


def _forget() -> None:
    """Give freed memory back and forget the highest memory so far, where the system can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logging.getLogger("basicsr_quant").info("the peak of memory includes the preparation")


def _resident(key: str) -> int:
    """Return a memory figure of this process in bytes; only the peak where there is no ``/proc``."""
    if STATUS.is_file():
        found = re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
        if found is not None:
            return int(found.group(1)) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(request: dict[str, Any]) -> None:
    """Do what :func:`in_own_process` asks for and print the answer as one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(request["threads"])
    module, _, name = request["function"].partition(":")
    work = getattr(importlib.import_module(module), name)(**request["arguments"])
    usage = measure(work, torch.device(request["arguments"]["device"]))
    sys.stdout.write(json.dumps(asdict(usage)) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
