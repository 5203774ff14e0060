"""Crops and dihedral augmentation of LR/HR pairs, from draws that the caller supplies."""

from __future__ import annotations

import numpy as np

from basicsr_quant.io.images import Image


def crop_pair(
    lq: Image, gt: Image | None, scale: int, top: int, left: int, height: int, width: int,
) -> tuple[Image, Image | None]:
    """Cut the same region out of both images.

    Args:
        lq: LR image (h, w, 3).
        gt: HR image, at least (scale*h, scale*w, 3), or None.
        scale: HR pixels per LR pixel.
        top: First row on the LR grid.
        left: First column on the LR grid.
        height: LR rows.
        width: LR columns.
    """
    patch = lq[top:top + height, left:left + width]
    if gt is None:
        return patch, None
    return patch, gt[top * scale:(top + height) * scale, left * scale:(left + width) * scale]


def random_crop(
    lq: Image, gt: Image | None, scale: int, size: int, random: np.random.Generator,
) -> tuple[Image, Image | None]:
    """Cut a square of ``size`` LR pixels whose corner is uniform on the LR grid (2DQuant data protocol)."""
    top = int(random.integers(lq.shape[0] - size + 1))
    left = int(random.integers(lq.shape[1] - size + 1))
    return crop_pair(lq, gt, scale, top, left, size, size)


def centre_crop(lq: Image, gt: Image | None, scale: int, size: int) -> tuple[Image, Image | None]:
    """Cut the central square of ``size`` LR pixels; an axis that is shorter stays whole."""
    height, width = min(size, lq.shape[0]), min(size, lq.shape[1])
    top, left = (lq.shape[0] - height) // 2, (lq.shape[1] - width) // 2
    return crop_pair(lq, gt, scale, top, left, height, width)


def augment(images: list[Image], hflip: bool, rotate: bool, random: np.random.Generator) -> list[Image]:
    """Flip horizontally, flip vertically and transpose, each with probability 1/2, all images alike.

    Three uniforms are drawn whatever is switched on, so that a switch changes nothing but its own effect.

    Args:
        images: Arrays (h, w, 3).
        hflip: Allow the horizontal flip.
        rotate: Allow the vertical flip and the transposition.
        random: Source of the three uniforms, in the order horizontal, vertical, transpose.
    """
    draws = random.random(3) < 0.5
    if hflip and draws[0]:
        images = [image[:, ::-1] for image in images]
    if rotate and draws[1]:
        images = [image[::-1] for image in images]
    if rotate and draws[2]:
        images = [image.transpose(1, 0, 2) for image in images]
    return images
