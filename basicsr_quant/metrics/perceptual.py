"""The one wrapper for lpips and pyiqa: images in, a number out, each network built once.

No weight is ever downloaded: a local path comes first, then the library's cache, then one error that names the file.
Which of these metrics agree with reference values: ``basicsr_quant.metrics.names.VERIFIED``.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr_quant.errors import UserError
from basicsr_quant.io.images import to_tensor
from basicsr_quant.metrics import networks
from basicsr_quant.metrics.pairs import Crop, Image, check_image, crop_pair

_LOCK = threading.RLock()
_lpips = functools.lru_cache(maxsize=None)(networks.build_lpips)
_iqa = functools.lru_cache(maxsize=None)(networks.build_iqa)


def load_lpips(
    net: str = "alex", weights: str | Path | None = None, pnet_rand: bool = False, device: str | torch.device = "cpu"
) -> nn.Module:
    """Return the LPIPS network for these arguments, built at the first call only.

    Args:
        net: Backbone: ``alex``, ``vgg`` or ``squeeze``.
        weights: The backbone's file or a folder that holds it; None = the torch hub cache.
        pnet_rand: A random backbone with fixed seed, for tests; needs no file.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` = the GPU if there is one.

    Raises:
        UserError: A package, a file or the device is missing, or the file does not fit.
    """
    with _LOCK:
        return _lpips(net, None if weights is None else str(weights), pnet_rand, resolve_device(device))


def load_iqa(
    name: str = "niqe", weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Return a metric network of pyiqa, built at the first call only.

    Args:
        name: pyiqa's name, such as ``dists``, ``niqe``, ``musiq``, ``maniqa``, ``maniqa-pipal``, ``clipiqa``.
        weights: Its file or a folder of files; None = the library's cache (for NIQE also basicsr's own parameters).
        device: See :func:`load_lpips`.

    Raises:
        UserError: The name is unknown; a package, a file or the device is missing; the file does not fit.
    """
    with _LOCK:
        return _iqa(name, None if weights is None else str(weights), resolve_device(device))


def calculate_lpips(
    sr: Image,
    gt: Image,
    crop_border: int = 0,
    crop: Crop = "border",
    net: str = "alex",
    weights: str | Path | None = None,
    pnet_rand: bool = False,
    device: str | torch.device = "cpu",
) -> float:
    """Return LPIPS v0.1, a perceptual distance; lower is better, 0 for identical images.

    Args:
        sr: (H, W, 3), uint8, RGB.
        gt: Of the same shape.
        crop_border: Pixels, see ``crop``.
        crop: ``border`` cuts all sides; ``multiple`` cuts the bottom and the right to a multiple of ``crop_border``, as
            BI-DiffSR's measurement does.
        net: See :func:`load_lpips`.
        weights: See :func:`load_lpips`.
        pnet_rand: See :func:`load_lpips`.
        device: See :func:`load_lpips`.

    Raises:
        UserError: The images cannot be compared, or see :func:`load_lpips`.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018.
    """
    first, second = crop_pair(sr, gt, crop_border, crop)
    network = load_lpips(net, weights, pnet_rand, device)
    place = resolve_device(device)
    with torch.no_grad():
        return float(network(_batch(first, place), _batch(second, place), normalize=True))


def calculate_iqa(
    sr: Image,
    gt: Image | None = None,
    name: str = "niqe",
    crop_border: int = 0,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> float:
    """Return a quality score of pyiqa with its default settings.

    Args:
        sr: (H, W, 3), uint8, RGB.
        gt: Of the same shape; needed by full-reference metrics such as DISTS, passed over by the others.
        name: See :func:`load_iqa`.
        crop_border: Pixels cut on each side.
        weights: See :func:`load_iqa`.
        device: See :func:`load_iqa`.

    Raises:
        UserError: The reference is missing, the images cannot be compared or scored, or see :func:`load_iqa`.
    """
    network = load_iqa(name, weights, device)
    place = resolve_device(device)
    if network.metric_mode == "FR":
        if gt is None:
            raise UserError(f"metric '{name}' compares with a reference; give the GT image or choose another")
        images = list(crop_pair(sr, gt, crop_border))
    else:
        check_image(sr, "SR")
        images = [crop_pair(sr, sr, crop_border)[0]]
    try:
        with torch.no_grad():
            score = float(network(*(_batch(image, place) for image in images)))
    except (RuntimeError, ValueError, AssertionError) as error:
        size = f"{images[0].shape[1]}x{images[0].shape[0]}"
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"metric '{name}' cannot score a {size} image ({reason}); leave it out") from error
    if math.isnan(score):
        raise UserError(f"metric '{name}' gives NaN for this image (often it is flat or too small); leave it out")
    return score


def prepare(metric: str, arguments: Mapping[str, Any]) -> None:
    """Build the network of a metric, if it has one, so that a missing file stops a run before its first image.

    Args:
        metric: Name in METRICS.
        arguments: Of the metric, as in an option file.

    Raises:
        UserError: See :func:`load_lpips` and :func:`load_iqa`.
    """
    loaders: dict[str, Callable[..., nn.Module]] = {"calculate_lpips": load_lpips, "calculate_iqa": load_iqa}
    if metric in loaders:
        load = loaders[metric]
        load(**{name: value for name, value in arguments.items() if name in inspect.signature(load).parameters})


def resolve_device(device: str | torch.device) -> str:
    """Return the device's name, ``auto`` resolved.

    Raises:
        UserError: The name is no device, or CUDA was asked for and is not there.
    """
    if str(device) == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device '{device}' is unknown; write auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{device}' was asked for, but torch sees no GPU; write cpu")
    return str(resolved)


def _batch(image: Image, device: str) -> torch.Tensor:
    return to_tensor(image).unsqueeze(0).to(device)
