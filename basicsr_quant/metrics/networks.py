"""Building the networks of lpips and pyiqa from local files: bare first, then filled by our own safe loader."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from basicsr_quant.compat import load_torchvision
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import apply_state_dict, file_digest, load_file, load_state_dict
from basicsr_quant.metrics import weight_files
from basicsr_quant.metrics.weight_files import WeightFile
from basicsr_quant.registry import nearest

_INSTALL = {
    "lpips": "pip install 'basicsr_quant[diffusion]'",
    "clip": "pip install openai-clip",
    "pyiqa": "pip install 'basicsr_quant[iqa]' && pip install --no-deps pyiqa==0.1.16",
}
_LPIPS_BACKBONES = {"alex": weight_files.ALEXNET, "vgg": weight_files.VGG16, "squeeze": weight_files.SQUEEZENET}
_CLIP_RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
_DATA_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_MATLAB = b"MATLAB "
_STAGE = re.compile(r"(?:^|\.)(?:slice|stage)\d+\.(\d+\.(?:weight|bias))$")
_FOLDER_METRICS = ("fid", "inception_score")


def build_lpips(net: str, weights: str | None, pnet_rand: bool, device: str) -> nn.Module:
    """Build LPIPS v0.1: the package's own linear weights on a torchvision backbone.

    Args:
        net: ``alex``, ``vgg`` or ``squeeze``.
        weights: The backbone's file or the folder that holds it; None = the torch hub cache.
        pnet_rand: Leave the backbone at fixed random weights (for tests); reads no file.
        device: Where the network lives.

    Raises:
        UserError: A package or a file is missing, or the file does not fit.
    """
    if net not in _LPIPS_BACKBONES:
        raise UserError(f"LPIPS backbone '{net}' is unknown; write one of {', '.join(_LPIPS_BACKBONES)}")
    load_torchvision()
    lpips = require("lpips", "lpips")
    path = None if pnet_rand else weight_files.locate("lpips", _LPIPS_BACKBONES[net], weights)
    with _quiet_and_seeded():
        network: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    if path is not None:
        _fill_backbone(network, path)
    return network.to(device).eval().requires_grad_(False)


def build_iqa(name: str, weights: str | None, device: str) -> nn.Module:
    """Build a metric of pyiqa with its default settings.

    Args:
        name: As pyiqa names it.
        weights: Its file or a folder of files; None = the library's cache.
        device: Where the network lives.

    Raises:
        UserError: The name is unknown, a package or a file is missing, or the file does not fit.
    """
    load_torchvision()
    require("pyiqa", name)
    configurations = importlib.import_module("pyiqa.default_model_configs").DEFAULT_CONFIGS
    if name not in configurations:
        raise UserError(f"pyiqa has no metric '{name}'{nearest(name, list(configurations))}")
    if any(part in name for part in _FOLDER_METRICS):
        raise UserError(f"metric '{name}' compares whole folders, not images; it is not offered here")
    build = _BUILDERS.get(name, _build_other)
    downloads = importlib.import_module("pyiqa.utils.download_util")
    try:
        with _quiet_and_seeded(), weight_files.no_downloads(name, downloads):
            network = build(name, weights)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), name) from error
    except KeyError as error:
        if "registry" not in str(error):
            raise
        raise UserError(f"pyiqa cannot import the network of metric '{name}', most often for want of the package "
                        f"'clip'; run: {_INSTALL['clip']}") from error
    return network.to(device).eval().requires_grad_(False)


def require(package: str, metric: str) -> ModuleType:
    """Import an optional package.

    Raises:
        UserError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), metric) from error


def _build_dists(name: str, weights: str | None) -> nn.Module:
    path = weight_files.locate(name, weight_files.DISTS, weights)
    backbone = weight_files.locate(name, weight_files.VGG16, weights, is_main=False)
    with _bare_backbones():
        network = _create(name, {"pretrained": False})
    _fill_backbone(network.net, backbone)
    state = load_state_dict(path)
    if not {"alpha", "beta"} <= set(state):
        raise UserError(f"'{path}' holds no 'alpha' and 'beta', so it is not {weight_files.DISTS.name}")
    apply_state_dict(network.net, {key: state[key] for key in ("alpha", "beta")}, path, strict=False)
    return network


def _build_filled(name: str, weights: str | None, file: WeightFile) -> nn.Module:
    path = weight_files.locate(name, file, weights)
    with _bare_backbones():
        network = _create(name, {"pretrained": False})
    apply_state_dict(network.net, load_state_dict(path), path)
    return network


def _build_clipiqa(name: str, weights: str | None) -> nn.Module:
    require("clip", name)
    path = weight_files.locate(name, weight_files.CLIP_RN50, weights)
    if file_digest(path) != _CLIP_RN50_SHA256:
        raise UserError(f"'{path}' is not CLIP's published RN50.pt (its SHA-256 differs); fetch it again")
    return _create(name, {"backbone": str(path)})


def _build_niqe(name: str, weights: str | None) -> nn.Module:
    packaged = _niqe_parameters_of_basicsr()
    if weights is not None or packaged is None or weight_files.find(weight_files.NIQE, None) is not None:
        given = weight_files.locate(name, weight_files.NIQE, weights)
        if not _is_matlab(given):
            raise UserError(f"'{given}' is damaged or no MATLAB file; restore it from a copy")
        return _create(name, {"pretrained_model_path": str(given)})
    import scipy.io

    with np.load(packaged) as content, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / weight_files.NIQE.name
        scipy.io.savemat(path, {"mu_prisparam": content["mu_pris_param"], "cov_prisparam": content["cov_pris_param"]})
        return _create(name, {"pretrained_model_path": str(path)})


def _is_matlab(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MATLAB)) == _MATLAB


def _niqe_parameters_of_basicsr() -> Path | None:
    package = importlib.util.find_spec("basicsr")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "metrics" / "niqe_pris_params.npz"
    return path if path.is_file() else None


_BUILDERS: Mapping[str, Callable[[str, str | None], nn.Module]] = {
    "dists": _build_dists,
    "musiq": functools.partial(_build_filled, file=weight_files.MUSIQ),
    "maniqa": functools.partial(_build_filled, file=weight_files.MANIQA),
    "maniqa-pipal": functools.partial(_build_filled, file=weight_files.MANIQA_PIPAL),
    "niqe": _build_niqe,
    "clipiqa": _build_clipiqa,
}


def _build_other(name: str, weights: str | None) -> nn.Module:
    if weights is None:
        return _create(name, {})
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"weights of metric '{name}': '{weights}' is no file; name the one that this metric loads")
    if not _is_matlab(path):
        load_file(path)
    try:
        with _without_pickled_code():
            return _create(name, {"pretrained_model_path": str(path)})
    except TypeError as error:
        raise UserError(f"metric '{name}' takes no local weight file; leave out 'weights'") from error


@contextlib.contextmanager
def _without_pickled_code() -> Iterator[None]:
    """Make torch read data alone, also where pyiqa asks it to run what is in a file."""
    former = os.environ.get(_DATA_ONLY)
    os.environ[_DATA_ONLY] = "1"
    try:
        yield
    finally:
        if former is None:
            del os.environ[_DATA_ONLY]
        else:
            os.environ[_DATA_ONLY] = former


def _create(name: str, arguments: dict[str, Any]) -> Any:
    return importlib.import_module("pyiqa").create_metric(name, device=torch.device("cpu"), **arguments)


def _fill_backbone(network: nn.Module, path: Path) -> None:
    state = load_state_dict(path)
    wanted = {name: f"features.{match[1]}" for name in network.state_dict() if (match := _STAGE.search(name))}
    missing = [theirs for theirs in wanted.values() if theirs not in state]
    if missing:
        raise UserError(f"'{path}' does not fit the backbone: '{missing[0]}' is missing; name torchvision's file")
    apply_state_dict(network, {own: state[theirs] for own, theirs in wanted.items()}, path, strict=False)


@contextlib.contextmanager
def _bare_backbones() -> Iterator[None]:
    import timm

    models = importlib.import_module("torchvision.models")
    vgg16, create_model = models.vgg16, timm.create_model
    with (
        weight_files.replaced(models, "vgg16", lambda *_, **__: vgg16(weights=None)),
        weight_files.replaced(timm, "create_model", lambda name, **_: create_model(name, pretrained=False)),
    ):
        yield


@contextlib.contextmanager
def _quiet_and_seeded() -> Iterator[None]:
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def _missing(package: str, metric: str) -> UserError:
    command = _INSTALL.get(package.partition(".")[0], f"{_INSTALL['pyiqa']} && pip install {package}")
    return UserError(f"metric '{metric}' needs the package '{package}', which is not installed; run: {command}")
