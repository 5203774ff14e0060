"""Repaired imports; each in a fresh interpreter, since an import happens once per process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


def run(repository: Path, code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_compat_patches_and_imports_nothing(repository: Path) -> None:
    assert run(repository, """
import sys
import basicsr_quant.compat
print([name for name in ('torch', 'torchvision', 'basicsr') if name in sys.modules])
""") == "[]"


def test_torchvision_models_and_transforms_work(repository: Path) -> None:
    assert run(repository, """
from basicsr_quant.compat import load_torchvision
torchvision = load_torchvision()
assert load_torchvision() is torchvision
import torch, torchvision.transforms as transforms
print(torchvision.models.alexnet().features[0].out_channels, transforms.Resize(4)(torch.zeros(1, 3, 8, 8)).shape[-1])
""") == "64 4"


def test_working_torchvision_is_left_alone(repository: Path) -> None:
    assert run(repository, """
import sys, types
sys.modules['torchvision'] = stand_in = types.ModuleType('torchvision')
from basicsr_quant import compat
print(compat.load_torchvision() is stand_in, 'torch' in sys.modules)
""") == "True False"


def test_foreign_errors_of_the_import_pass_through(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    assert run(repository, f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from basicsr_quant.compat import load_torchvision
try:
    load_torchvision()
except RuntimeError as error:
    print(error)
""") == "something else"


@pytest.mark.parametrize(("package", "loader"), [("torchvision", "load_torchvision"), ("basicsr", "load_basicsr")])
def test_missing_package_says_how_to_install_it(repository: Path, package: str, loader: str) -> None:
    message = run(repository, f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
from basicsr_quant import compat
from basicsr_quant.errors import UserError
try:
    compat.{loader}()
except UserError as error:
    print(error)
""")
    assert f"'{package}' is not installed" in message and "pip install" in message and "\n" not in message


def test_torchvision_from_eight_threads(repository: Path) -> None:
    assert run(repository, """
from concurrent.futures import ThreadPoolExecutor
from basicsr_quant.compat import load_torchvision
with ThreadPoolExecutor(8) as pool:
    modules = list(pool.map(lambda _: load_torchvision(), range(8)))
print(len({id(module) for module in modules}), hasattr(modules[0], 'models'))
""") == "1 True"


def test_basicsr_and_its_degradations(repository: Path) -> None:
    if importlib.util.find_spec("basicsr") is None:
        pytest.skip("basicsr is not installed")
    assert run(repository, """
from basicsr_quant.compat import load_basicsr
basicsr = load_basicsr()
import torch
from basicsr.data.degradations import rgb_to_grayscale
print(basicsr.__version__, rgb_to_grayscale(torch.ones(1, 3, 2, 2)).shape == (1, 1, 2, 2))
""").splitlines()[-1] == "1.4.2 True"
