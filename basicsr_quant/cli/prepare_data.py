"""The verb ``prepare-data``: LR images from HR images by the bicubic that the field uses."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from basicsr_quant.data.bicubic import downscale
from basicsr_quant.data.lmdb import write_lmdb
from basicsr_quant.data.stores import FolderStore
from basicsr_quant.errors import UserError
from basicsr_quant.io.images import Image, decode_image, read_image, write_image
from basicsr_quant.io.progress import track

logger = logging.getLogger(__name__)


def _scale(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 1")
    return int(text)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "prepare-data", help="make LR images from HR images (MATLAB's bicubic)",
        description="Writes OUT/LR_bicubic/X2/<stem>x2.png and so on. HR images are cropped at the bottom and right to "
                    "a multiple of the scale.")
    parser.add_argument("--hr", required=True, metavar="DIR", help="folder of HR images")
    parser.add_argument("--out", required=True, metavar="DIR", help="where LR_bicubic goes")
    parser.add_argument("--scale", required=True, nargs="+", type=_scale, metavar="N", help="HR pixels per LR pixel")
    parser.add_argument("--lmdb", action="store_true", help="also write OUT/HR.lmdb and OUT/LR_bicubic/X2.lmdb ...")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the verb.

    Raises:
        UserError: Some images could not be used; it names them, and the others were written.
    """
    prepare(arguments.hr, arguments.out, sorted(set(arguments.scale)), arguments.lmdb)
    return 0


def lr_path(out: str | Path, name: str, scale: int) -> Path:
    """Return where the LR image of the HR image ``name`` goes."""
    return Path(out) / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png"


def prepare(hr: str | Path, out: str | Path, scales: Iterable[int], lmdb: bool = False) -> None:
    """Write the LR images of a folder; a damaged image does not stop the others.

    Args:
        hr: Folder of HR images.
        out: Folder in which ``LR_bicubic`` is made.
        scales: HR pixels per LR pixel.
        lmdb: Also write databases in BasicSR's layout, keyed by the HR names.

    Raises:
        UserError: Some images could not be used; it names them.
    """
    store = FolderStore(hr, "--hr")
    scales = list(scales)

    def make(name: str) -> str | None:
        try:
            image = decode_image(store.read(name), store.path(name))
        except UserError as error:
            return str(error)
        if min(image.shape[:2]) < max(scales):
            return f"'{store.path(name)}' is {image.shape[0]}x{image.shape[1]}, smaller than the scale {max(scales)}"
        for scale in scales:
            write_image(lr_path(out, name, scale), downscale(image, scale))
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = track(pool.map(make, store.names), "LR images", len(store.names))
        outcomes = dict(zip(store.names, made, strict=True))
    good = [name for name, problem in outcomes.items() if problem is None]
    if lmdb and good:
        write_lmdb(Path(out) / "HR.lmdb", track(_images(good, store), "HR.lmdb", len(good)))
        for scale in scales:
            images = ((name, read_image(lr_path(out, name, scale))) for name in good)
            write_lmdb(Path(out) / "LR_bicubic" / f"X{scale}.lmdb", track(images, f"X{scale}.lmdb", len(good)))
    logger.info("%d LR images for each of the scales %s in '%s'", len(good), scales, Path(out) / "LR_bicubic")
    problems = [problem for problem in outcomes.values() if problem is not None]
    if problems:
        raise UserError(f"{len(problems)} of {len(outcomes)} images were left out, the others are written: "
                        + "; ".join(problems))


def _images(names: list[str], store: FolderStore) -> Iterator[tuple[str, Image]]:
    for name in names:
        yield name, decode_image(store.read(name), store.path(name))
