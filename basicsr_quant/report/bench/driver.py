"""What all benchmarks share: interleaved rounds, statistics, the environment, the report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from basicsr_quant.errors import UserError
from basicsr_quant.io.progress import track

UNSTEADY = 0.1
ISA_FLAGS = ("neon", "sve", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
             "avx512_bitalg", "avx512_vpopcntdq", "amx_int8", "amx_bf16")
ALLOCATOR_SETTINGS = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
                      "GLIBC_TUNABLES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
PACKAGES = ("torch", "numpy", "numba", "triton", "onnxruntime", "openvino")
Variants = Mapping[str, Callable[[], object]]


@dataclass
class Report:
    """What a benchmark found.

    Attributes:
        title: What was measured, with its sizes.
        tables: Heading -> rows; a row maps column -> value, and rows of a table have the same columns.
        notes: What was checked and what a reader must know.
        settings: The arguments.
        environment: As it was at the start.
    """

    title: str
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=lambda: environment())

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {"title": self.title, "settings": self.settings, "tables": self.tables, "notes": self.notes,
                "environment": {**self.environment, "load average at the end": _load_average()}}

    def as_text(self) -> str:
        """Return title, tables, notes and environment for people."""
        found = self.as_dict()
        lines = [self.title]
        for heading, rows in self.tables.items():
            lines += ["", heading, *_aligned(rows)]
        described = [f"{key}: {value}" for key, value in found["environment"].items()]
        return "\n".join([*lines, "", *self.notes, "", *described]) + "\n"


def interleave(variants: Variants, rounds: int, device: torch.device, description: str) -> dict[str, list[float]]:
    """Time variants in rounds A, B, C, A, B, C, ..., each after one run that is not counted.

    Args:
        variants: Name -> what to run.
        rounds: Number of rounds; ratios are to be formed within a round.
        device: Where the work happens; time ends when it is idle.
        description: What is being done, for the progress line.

    Returns:
        Name -> seconds in every round.
    """
    for variant in variants.values():
        variant()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in track(range(rounds), description):
        for name, variant in variants.items():
            seconds[name].append(seconds_of(variant, device))
    return seconds


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Return how long a function takes, until the device is idle."""
    synchronize(device)
    began = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timing(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Return the columns for one variant.

    Args:
        seconds: In every round.
        reference: Of the variant that ratios refer to, in the same rounds.

    Returns:
        Median, minimum and interquartile range over the median, and the median of the ratios of single rounds (above 1:
        faster than the reference).
    """
    middle = statistics.median(seconds)
    spread = 0.0
    if len(seconds) > 1:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
        spread = (high - low) / middle
    ratios = [other / own for other, own in zip(reference, seconds, strict=True)]
    return {"median s": middle, "min s": min(seconds), "IQR/median": spread, "speed-up": statistics.median(ratios),
            "rounds": len(seconds)}


def unsteady_note(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line that names the variants whose times vary too much to be quoted, or nothing."""
    names = [str(row["variant"]) for row in rows if row.get("IQR/median", 0.0) > UNSTEADY]
    return [f"UNSTEADY (IQR above {UNSTEADY:.0%} of the median), repeat on a quiet machine: {'; '.join(names)}"
            ] if names else []


def require(condition: bool, what: str) -> None:
    """Stop the benchmark if its variants do not compute the same.

    Raises:
        UserError: ``condition`` is false.
    """
    if not condition:
        raise UserError(f"bench: results differ, so times mean nothing: {what}")


def environment() -> dict[str, Any]:
    """Return what times depend on: processor, threads, load, versions, memory allocator."""
    found = {
        "processor": _processor(),
        "ISA": " ".join(_isa_flags()) or torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset"),
        "load average": _load_average(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))),
        "allocator": _allocator(),
    }
    if torch.cuda.is_available():
        found["GPU"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return found


def _load_average() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    lines = (line.partition(":") for line in path.read_text(errors="replace").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _isa_flags() -> list[str]:
    present = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [flag for flag in ISA_FLAGS if flag in present]


def _allocator() -> str:
    settings = [f"{name}={os.environ[name]}" for name in ALLOCATOR_SETTINGS if name in os.environ]
    preloaded = [Path(name).name for name in os.environ.get("LD_PRELOAD", "").replace(":", " ").split()]
    default = f"{platform.libc_ver()[0] or sys.platform} default"
    return ", ".join([*(f"preloaded {name}" for name in preloaded), *settings]) or default


def _aligned(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = list(rows[0])
    cells = [head, *([_shown(row[column]) for column in head] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
