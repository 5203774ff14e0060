"""Compiling at first use: the cache, the switch, and machines without a compiler."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from basicsr_quant.deploy import native
from basicsr_quant.deploy.native import compiler, library
from basicsr_quant.deploy.runtimes import base
from basicsr_quant.deploy.runtimes.simulate import Simulate

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, compiler.COMPILERS)), reason="no C compiler")
ASK = "from basicsr_quant.deploy import native; print(native.available())"


def start(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ASK], env={**os.environ, **environment}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_generic_is_always_usable() -> None:
    assert compiler.usable_levels()[-1].name == "generic"
    assert native.usable_levels()[0] == compiler.usable_levels()[0].name


def test_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    assert not native.available()
    with pytest.raises(RuntimeError, match="BASICSR_QUANT_NATIVE=0"):
        native.best_kernels()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.setattr(base, "BY_SPEED", ("native", "simulate"))
    library._best.cache_clear()
    library.load_level.cache_clear()
    try:
        assert native.missing() == "no C compiler (no-such-compiler) found" and not native.available()
        with caplog.at_level(logging.WARNING, "basicsr_quant"):
            assert isinstance(base.runtime("auto"), Simulate)
        assert [record.getMessage() for record in caplog.records] == [
            "backend 'native' does not run here (no C compiler (no-such-compiler) found); 'simulate' comes next"]
    finally:
        library._best.cache_clear()
        library.load_level.cache_clear()


@needs_compiler
def test_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'no space' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(compiler.CannotCompile, match="no space"):
        compiler.compiled(compiler.LEVELS[-1])
    assert not list((tmp_path / "cache" / "basicsr_quant" / "native").iterdir())


@needs_compiler
def test_processes_at_once_share_one_result(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), native.SWITCH: "1"}
    processes = [start(environment) for _ in range(2)]
    for process in processes:
        out, errors = process.communicate(timeout=300)
        assert out.strip() == "True", errors
    (made,) = (tmp_path / "basicsr_quant" / "native").iterdir()
    before = made.stat().st_mtime_ns
    assert start(environment).communicate(timeout=300)[0].strip() == "True"
    assert made.stat().st_mtime_ns == before


@needs_compiler
def test_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(compiler.CannotCompile, match="file"):
        compiler.compiled(compiler.LEVELS[-1])
