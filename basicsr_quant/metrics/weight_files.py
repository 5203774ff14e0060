"""Where the weights of metric networks are looked for. Nothing is ever downloaded."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch

from basicsr_quant.errors import UserError


@dataclass(frozen=True)
class WeightFile:
    """A file that a metric needs.

    Args:
        name: File name, as its publisher names it.
        folder: Where the library keeps it, below ``torch.hub.get_dir()``.
        address: Web folder that it can be fetched from; empty if unknown.
    """

    name: str
    folder: str
    address: str = ""


TORCHVISION = "https://download.pytorch.org/models"
ALEXNET = WeightFile("alexnet-owt-7be5be79.pth", "checkpoints", TORCHVISION)
VGG16 = WeightFile("vgg16-397923af.pth", "checkpoints", TORCHVISION)
SQUEEZENET = WeightFile("squeezenet1_1-b8a52dc0.pth", "checkpoints", TORCHVISION)
DISTS = WeightFile("DISTS_weights-f5e65c96.pth", "pyiqa")
NIQE = WeightFile("niqe_modelparameters.mat", "pyiqa")
MUSIQ = WeightFile("musiq_koniq_ckpt-e95806b9.pth", "pyiqa")
MANIQA = WeightFile("ckpt_koniq10k.pt", "pyiqa")
MANIQA_PIPAL = WeightFile("MANIQA_PIPAL-ae6d356b.pth", "pyiqa")
CLIP_RN50 = WeightFile("RN50.pt", "clip")


def find(file: WeightFile, weights: str | None) -> Path | None:
    """Look a file up: first in the folder ``weights`` (or beside the file ``weights``), then in the library's cache."""
    folders = [] if weights is None else [Path(weights) if Path(weights).is_dir() else Path(weights).parent]
    candidates = [folder / file.name for folder in [*folders, _cache(file)]]
    return next((path for path in candidates if path.is_file()), None)


def locate(metric: str, file: WeightFile, weights: str | None, is_main: bool = True) -> Path:
    """Return the path of a file that a metric needs.

    Args:
        metric: Name of the metric, for the error message.
        file: What is wanted.
        weights: A folder that holds files by name, or the main file itself under any name; None = the library's cache.
        is_main: Whether ``weights``, if it is a file, is this one.

    Raises:
        UserError: It is nowhere; the message names the file and where to put it.
    """
    if weights is not None and not Path(weights).exists():
        raise UserError(f"weights of metric '{metric}': '{weights}' does not exist; name the file '{file.name}' or a "
                        "folder that holds it")
    if is_main and weights is not None and Path(weights).is_file():
        return Path(weights)
    path = find(file, weights)
    if path is None:
        source = f" (from {file.address}/{file.name})" if file.address else ""
        raise UserError(f"metric '{metric}' needs the file '{file.name}', which is not downloaded here; put it at "
                        f"'{_cache(file) / file.name}'{source} or name it or its folder by the metric's option "
                        "'weights'")
    return path


def _cache(file: WeightFile) -> Path:
    return Path(torch.hub.get_dir()) / file.folder


@contextmanager
def replaced(module: ModuleType, attribute: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of a module as seen by the calling thread; other threads still reach the original."""
    original = getattr(module, attribute)
    owner = threading.get_ident()

    def dispatch(*arguments: Any, **keywords: Any) -> Any:
        chosen = replacement if threading.get_ident() == owner else original
        return chosen(*arguments, **keywords)

    setattr(module, attribute, dispatch)
    try:
        yield
    finally:
        setattr(module, attribute, original)


@contextmanager
def no_downloads(metric: str, *modules: ModuleType) -> Iterator[None]:
    """Turn every download that the calling thread attempts into a UserError that names the file.

    Args:
        metric: Name of the metric, for the error message.
        modules: Modules that hold their own reference to ``torch.hub.download_url_to_file``.
    """

    def refuse_file(url: str, destination: str, *_: Any, **__: Any) -> NoReturn:
        name = PurePosixPath(urlparse(url).path).name
        raise UserError(f"metric '{metric}' needs the file '{name}', which is not downloaded here; put it at "
                        f"'{destination}' (from {url})")

    def refuse_host(host: Any, *_: Any, **__: Any) -> NoReturn:
        raise UserError(f"metric '{metric}' needs a file from {host}, which is not downloaded here; fetch it into the "
                        "library's cache on a machine with a network, or choose another metric")

    with ExitStack() as stack:
        for module in (torch.hub, *modules):
            stack.enter_context(replaced(module, "download_url_to_file", refuse_file))
        stack.enter_context(replaced(socket, "getaddrinfo", refuse_host))
        yield
