"""The LR patches on which ranges are calibrated: a pure function of (data set, number, patch size, seed)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import save_torch, write_bytes
from basicsr_quant.io.images import to_tensor
from basicsr_quant.io.weights import file_digest, load_file
from basicsr_quant.randomness import generator

logger = logging.getLogger(__name__)

STREAM = "calibration_"
RANGE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CalibrationSet:
    """Calibration patches and where they come from.

    Attributes:
        lq: LR patches (n, 3, p, p), float32 RGB in [0, 1].
        gt: HR patches (n, 3, s*p, s*p), or None.
        lq_path: File of each LR patch; empty if unknown.
        gt_path: File of each HR patch; empty if unknown.
        digest: SHA-256 in hexadecimal that identifies the patches; it belongs into the checkpoint.
    """

    lq: torch.Tensor
    gt: torch.Tensor | None
    lq_path: list[str]
    gt_path: list[str]
    digest: str


def calibration_patches(
    dataset: PairedImageDataset, count: int, patch_size: int, seed: int, folder: str | Path | None = None,
) -> CalibrationSet:
    """Take random augmented patches, each from another image as long as there are enough.

    Args:
        dataset: Where they are taken from; images smaller than a patch are passed over.
        count: Number of patches.
        patch_size: Side of a patch in LR pixels.
        seed: Seed of the choice of images, crops and flips; the data set's own seed plays no part.
        folder: Where ``<digest>.safetensors`` is looked for and left; None = nowhere.

    Raises:
        UserError: No image is as large as a patch.
    """
    items = _choose(dataset, count, patch_size, seed)
    digest = _digest(dataset, items, patch_size, seed)
    paths = [dataset.lq_path(item) for item in items]
    gt_paths = [dataset.gt_path(item) or "" for item in items] if dataset.has_gt else []
    cache = None if folder is None else Path(folder) / f"{digest}.safetensors"
    if cache is not None and cache.is_file():
        kept = _read_cache(cache)
        if kept is not None and ("gt" in kept or not dataset.has_gt):
            return CalibrationSet(kept["lq"], kept["gt"] if dataset.has_gt else None, paths, gt_paths, digest)
    patches = [dataset.patch(item, patch_size, seed, 0, sample, STREAM) for sample, item in enumerate(items)]
    lq = torch.stack([to_tensor(patch) for patch, _ in patches])
    references = [to_tensor(patch) for _, patch in patches if patch is not None]
    result = CalibrationSet(lq, torch.stack(references) if references else None, paths, gt_paths, digest)
    if cache is not None:
        _write_safetensors(cache, result)
    return result


def _choose(dataset: PairedImageDataset, count: int, patch_size: int, seed: int) -> list[int]:
    fitting = [item for item, pair in enumerate(dataset.pairs) if min(pair.size) >= patch_size]
    if not fitting:
        height, width = dataset.pairs[0].size
        raise UserError(f"datasets:{dataset.key}: no image is as large as a calibration patch of "
                        f"{patch_size}x{patch_size} LR pixels ('{dataset.lq_path(0)}' is {height}x{width}); lower "
                        "quant:calibration:patch_size")
    if len(fitting) < len(dataset.pairs):
        logger.warning("calibration passes over %d of %d images of datasets:%s that are smaller than %dx%d LR pixels",
                       len(dataset.pairs) - len(fitting), len(dataset.pairs), dataset.key, patch_size, patch_size)
    items: list[int] = []
    while len(items) < count:
        order = generator(seed, f"{STREAM}order", len(items) // len(fitting)).permutation(len(fitting))
        items += [fitting[place] for place in order]
    return items[:count]


def _digest(dataset: PairedImageDataset, items: list[int], patch_size: int, seed: int) -> str:
    description = {
        "format": 1, "scale": dataset.scale, "patch_size": patch_size, "seed": seed, "items": items,
        "hflip": dataset.use_hflip, "rotate": dataset.use_rot,
        "images": [[pair.name, *pair.size] for pair in dataset.pairs],
        "contents": {str(item): hashlib.sha256(dataset.lq_content(item)).hexdigest() for item in sorted(set(items))},
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write_safetensors(path: Path, content: CalibrationSet) -> None:
    from safetensors.torch import save

    tensors = {"lq": content.lq} if content.gt is None else {"lq": content.lq, "gt": content.gt}
    write_bytes(path, save(tensors, {"sha256": _checksum(tensors)}))


def _read_cache(path: Path) -> dict[str, torch.Tensor] | None:
    """Return what is kept under ``path``; None if it is damaged (then it is made again)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        tensors, metadata = {}, {}
    if "lq" in tensors and metadata.get("sha256") == _checksum(tensors):
        return tensors
    logger.warning("calibration patches '%s' are damaged and are made again", path)
    return None


def load_calibration_file(path: str | Path, scale: int | None = None) -> CalibrationSet:
    """Read a published calibration file (``lq``, ``gt``, ``lq_path``, ``gt_path``) or one of ours.

    Args:
        path: ``.pth`` or ``.safetensors``.
        scale: If given, HR patches in the file must be that many times as large as the LR patches.

    Raises:
        UserError: The file cannot be read, has no LR patches (n, 3, h, w), values outside [0, 1] or NaN, or was made
            for another scale.
    """
    content = load_file(path)
    lq = content.get("lq") if isinstance(content, Mapping) else None
    if not isinstance(lq, torch.Tensor) or lq.ndim != 4 or lq.shape[1] != 3 or not lq.numel():
        raise UserError(f"'{path}' is no calibration file: it needs a tensor 'lq' of the shape (n, 3, h, w); make one "
                        "with cali_data_save_path")
    gt = content.get("gt")
    for name, tensor in (("lq", lq), ("gt", gt)):
        if tensor is not None:
            _check_values(path, name, tensor)
    if scale is not None and gt is not None and gt.shape != (lq.shape[0], 3, scale * lq.shape[2], scale * lq.shape[3]):
        raise UserError(f"'{path}' was not made for scale {scale}: 'lq' is {tuple(lq.shape)}, 'gt' {tuple(gt.shape)}; "
                        "choose the file of this scale")
    return CalibrationSet(lq.float(), None if gt is None else gt.float(), _strings(content.get("lq_path")),
                          _strings(content.get("gt_path")), file_digest(path))


def _check_values(path: str | Path, name: str, tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 4 or not tensor.is_floating_point():
        raise UserError(f"'{path}': '{name}' is no float tensor (n, 3, h, w); make it again with cali_data_save_path")
    if not torch.isfinite(tensor).all():
        raise UserError(f"'{path}': '{name}' holds NaN or infinite values; make it again with cali_data_save_path")
    lowest, highest = float(tensor.min()), float(tensor.max())
    if lowest < -RANGE_TOLERANCE or highest > 1 + RANGE_TOLERANCE:
        raise UserError(f"'{path}': '{name}' ranges from {lowest:g} to {highest:g}, not within [0, 1]; divide by 255")


def _strings(value: Any) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, (list, tuple)) else []


def save_calibration(path: str | Path, content: CalibrationSet) -> None:
    """Write the patches: ``.safetensors``, or else the published layout (``lq``, ``gt``, ``lq_path``, ``gt_path``).

    Raises:
        UserError: The file cannot be written.
    """
    if Path(path).suffix == ".safetensors":
        _write_safetensors(Path(path), content)
        return
    record = {"lq": content.lq, "gt": content.gt, "lq_path": content.lq_path, "gt_path": content.gt_path}
    save_torch(path, {name: value for name, value in record.items() if value is not None})
