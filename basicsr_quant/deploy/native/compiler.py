"""The host's C compiler: which one, with which flags, and where the result is kept."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = ("binary_conv.c", "linear.c", "attention.c", "swin_block.c")
HEADERS = ("common.h", "linear.h", "attention.h")
FOLDER = Path(__file__).parent
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
SECONDS = 600.0
_VECTORS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx2", "-mfma", "-mpopcnt")
_VECTOR_FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx2", "fma", "popcnt")


class CannotCompile(Exception):
    """One line that says why."""


@dataclass(frozen=True)
class Level:
    """Instructions that a library is compiled for.

    Attributes:
        name: Shown in tables and logs.
        flags: Of the compiler.
        features: What the processor must have, in the words of ``/proc/cpuinfo``.
    """

    name: str
    flags: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


LEVELS = (
    Level("avx512-vnni-vpopcntdq", (*_VECTORS, "-mavx512vpopcntdq"), (*_VECTOR_FEATURES, "avx512_vpopcntdq")),
    Level("avx512-vnni", _VECTORS, _VECTOR_FEATURES),
    Level("avx2", ("-mavx2", "-mfma", "-mpopcnt"), ("avx2", "fma", "popcnt")),
    Level("generic"),
)
"""From the fastest to what every machine can."""


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return the features that the system reports for its first processor; nothing where it does not say."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return frozenset()
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def usable_levels() -> list[Level]:
    """Return the levels that this processor can run, the fastest first."""
    return [level for level in LEVELS if cpu_features().issuperset(level.features)]


def cache_folder() -> Path:
    """Return where compiled libraries are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "basicsr_quant" / "native"


def compiled(level: Level) -> Path:
    """Return the compiled library, from the cache if it was made before from the same sources by the same compiler.

    Any number of processes may ask at once: each writes a file of its own, and renames it.

    Raises:
        CannotCompile: There is no compiler, it failed, or the cache cannot be written.
    """
    compiler = find_compiler()
    try:
        version = _run([compiler, "--version"])
        digest = hashlib.sha256()
        for part in (compiler, version, platform.machine(), *FLAGS, *level.flags):
            digest.update(part.encode() + b"\0")
        for name in (*HEADERS, *SOURCES):
            digest.update((FOLDER / name).read_bytes())
        folder = cache_folder()
        path = folder / f"{level.name}-{digest.hexdigest()[:24]}.so"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compile(compiler, level, path)
        return path
    except OSError as error:
        raise CannotCompile(f"{error.filename or cache_folder()}: {error.strerror or error}") from error


def find_compiler() -> str:
    """Return the path of the compiler: the environment's ``CC``, else cc, gcc or clang.

    Raises:
        CannotCompile: There is none.
    """
    chosen = os.environ.get("CC")
    names = (chosen,) if chosen else COMPILERS
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise CannotCompile(f"no C compiler ({', '.join(names)}) found")


def _compile(compiler: str, level: Level, path: Path) -> None:
    """Compile to ``path``, with threads if the compiler has OpenMP."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "library.so"
        command = [compiler, *FLAGS, *level.flags, *(str(FOLDER / name) for name in SOURCES), "-o", str(made), "-lm"]
        try:
            _run([*command, "-fopenmp"])
        except CannotCompile:
            _run(command)
        os.replace(made, path)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CannotCompile(f"{command[0]} took more than {SECONDS:.0f} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise CannotCompile(f"{command[0]} failed: {lines[0]}")
    return done.stdout
