"""What holds for the repository as a whole: imports stay light, files stay short, pins match ranges."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

HEAVY = {
    "basicsr", "diffusers", "lmdb", "lpips", "onnx", "onnxruntime", "pyiqa", "skimage", "spandrel", "torchvision",
    "transformers", "wandb",
}
OUTSIDE = re.compile(
    r"(?<![\w.])/(?:work|root|home|opt/\w+)/|(?<!\w)shared/|\bpypi\.org|pythonhosted|download\.pytorch\.org/whl"
)


def run_python(program: str) -> str:
    """Return what a fresh interpreter prints for ``program``."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def package_files(repository: Path) -> list[Path]:
    return sorted((repository / "basicsr_quant").rglob("*.py"))


def committed_files(repository: Path) -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := repository / name).is_file()]


def requirements(repository: Path) -> list[Requirement]:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested = [group for name, group in extras.items() if name not in ("all", "wandb")]
    return [Requirement(line) for group in [project["dependencies"], *tested] for line in group]


def pins(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    return dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))


def test_import_is_quick() -> None:
    program = "import time, torch; t = time.perf_counter(); import basicsr_quant; print(time.perf_counter() - t)"
    assert min(float(run_python(program)) for _ in range(2)) < 1


def test_heavy_libraries_wait_for_their_first_use() -> None:
    program = f"""
import importlib, pkgutil, sys
import basicsr_quant
for module in pkgutil.walk_packages(basicsr_quant.__path__, "basicsr_quant."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*(sys.modules.keys() & {HEAVY!r}))
"""
    assert run_python(program) == ""


def test_package_does_not_print(repository: Path) -> None:
    calls = [
        f"{path.relative_to(repository)}:{node.lineno}"
        for path in package_files(repository)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls


def test_files_are_short(repository: Path) -> None:
    lengths = {path.relative_to(repository): len(path.read_text().splitlines()) for path in package_files(repository)}
    assert {path: length for path, length in lengths.items() if length > 350} == {}


def test_nothing_names_a_machine(repository: Path) -> None:
    exempt = {repository / ".ci/run", Path(__file__)}
    found = []
    for path in committed_files(repository):
        content = path.read_bytes()
        if path in exempt or b"\0" in content:
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            if OUTSIDE.search(line):
                found.append(f"{path.relative_to(repository)}:{number}: {line.strip()[:80]}")
    assert not found


def test_pins_are_inside_the_ranges(repository: Path) -> None:
    pinned = pins(repository)
    for requirement in requirements(repository):
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} excludes {pinned[name]}"


def test_unlisted_requirements_are_pinned_alike(repository: Path) -> None:
    unlisted = re.findall(r"^# (\w+)==(\S+)$", (repository / "requirements.txt").read_text(), re.MULTILINE)
    assert {name for name, _ in unlisted} == {"basicsr", "pyiqa"}
    assert all(pins(repository)[name] == version for name, version in unlisted)


def test_install_refuses_an_unknown_mode(repository: Path) -> None:
    done = subprocess.run(["bash", "scripts/install.sh", "everything"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "install.sh: 'everything' is none of core, all, test\n"


@pytest.mark.parametrize("folder", ["scripts", ".ci"])
def test_scripts_parse(repository: Path, folder: str) -> None:
    for path in sorted((repository / folder).iterdir()):
        assert subprocess.run(["bash", "-n", path]).returncode == 0, path
