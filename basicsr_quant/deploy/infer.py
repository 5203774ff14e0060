"""Restoring the images of a folder, one after another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from basicsr_quant.data.multi_paired import enlarge
from basicsr_quant.data.stores import FolderStore
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import MAX_PIXELS, read_image, to_tensor, write_image
from basicsr_quant.io.progress import track
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.models.restoring import restore_file

logger = logging.getLogger("basicsr_quant")


def images_in(source: Path) -> list[Path]:
    """Return an image, or the images of a folder sorted by stem.

    Raises:
        UserError: There is none, or two have the same stem.
    """
    if source.is_file():
        return [source]
    store = FolderStore(source, "-i")
    return [Path(store.path(name)) for name in store.names]


def restore_files(model: RestorationModel, network: nn.Module, images: Sequence[Path], output: Path,
                  max_pixels: int = MAX_PIXELS) -> int:
    """Restore images and write each as PNG under its own stem; one at a time is in memory.

    Args:
        model: Its ``restore`` is used.
        network: Frozen, with a backend attached.
        images: Files. The index of one is what random draws depend on, as in a test set.
        output: Folder.
        max_pixels: Larger images are refused.

    Returns:
        Number of restored images.

    Raises:
        UserError: Some images failed; all others were restored before.
    """
    failures: list[str] = []
    for index, path in enumerate(track(images, "restoring")):
        try:
            _restore(model, network, path, index, output / f"{path.stem}.png", max_pixels)
        except UserError as error:
            logger.warning("%s", error)
            failures.append(str(error))
    if failures:
        raise UserError(f"{len(failures)} of {len(images)} images failed; first: {failures[0]}")
    return len(images)


def _restore(model: RestorationModel, network: nn.Module, path: Path, index: int, target: Path,
             max_pixels: int) -> None:
    if target.exists() and target.samefile(path):
        raise UserError(f"'{path}' would be overwritten by its own result; choose another folder for -o")
    write_image(target, restore_file(model, _input(model, path, max_pixels), network, index, str(path)))


def _input(model: RestorationModel, path: Path, max_pixels: int) -> torch.Tensor:
    """Return an image (1, 3, h, w) as the model wants it."""
    image = read_image(path, max_pixels)
    return to_tensor(enlarge(image, model.options.scale) if model.condition_at_target_size else image)[None]
