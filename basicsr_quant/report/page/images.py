"""The image files of a page: LR, interpolated, restored by each run, HR."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from basicsr_quant.data.augment import centre_crop
from basicsr_quant.data.bicubic import imresize
from basicsr_quant.data.build import build_dataset
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_bytes
from basicsr_quant.io.images import Image, encode_image, image_size, read_content
from basicsr_quant.options.types import datasets_of_phase
from basicsr_quant.report.page.runs import Run

FOLDER = "images"
NO_LR = "LR image not found"
Panel = dict[str, Any]


class ImageWriter:
    """Puts images of test sets into a page's folder.

    Args:
        folder: Of the page.
        runs: All runs.
        limit: Images of each data set at most.
        interpolate: Whether to add the bicubic enlargement of the LR image.
    """

    def __init__(self, folder: Path, runs: Sequence[Run], limit: int, interpolate: bool) -> None:
        self._folder, self._runs, self._limit, self._interpolate = folder, runs, limit, interpolate
        self._datasets = 0
        self.notes: list[str] = []

    def dataset(self, name: str) -> list[dict[str, Any]]:
        """Write the images of a data set and return them as the page's data."""
        source = self._source(name)
        self._datasets += 1
        pairs = {} if source is None else {pair.name: number for number, pair in enumerate(source.pairs)}
        stems = list(pairs) or sorted({stem for run in self._runs for stem in run.rows.get(name, {})})
        if len(stems) > self._limit:
            self.notes.append(f"'{name}': {self._limit} of {len(stems)} images are here; --images asks for more")
        return [self._image(name, number, stem, source, pairs.get(stem))
                for number, stem in enumerate(stems[:self._limit])]

    def _source(self, name: str) -> PairedImageDataset | None:
        """Open the data set as a run's options describe it, without HR images if they are not there."""
        trouble = "the options of no run describe it"
        for options in (run.options for run in self._runs if run.options is not None):
            for key, block in datasets_of_phase(options, "test"):
                for attempt in (block, replace(block, dataroot_gt=None)) if block.name == name else ():
                    try:
                        return build_dataset(attempt, options.scale, "test", options.manual_seed, key)
                    except UserError as error:
                        trouble = str(error)
        self.notes.append(f"'{name}': no LR and HR images ({trouble})")
        return None

    def _image(self, dataset: str, number: int, stem: str, source: PairedImageDataset | None,
               item: int | None) -> dict[str, Any]:
        place = f"{FOLDER}/{self._datasets}_{_safe(dataset)}/{number:03}_{_safe(stem)}"
        low, high = self._read(source, item, stem) if source is not None and item is not None else (None, None)
        saved = [_saved(run, dataset, stem) for run in self._runs]
        if low is not None and source is not None:
            size = low.shape[0] * source.scale, low.shape[1] * source.scale
        else:
            size = next((found for found in saved if isinstance(found, tuple)), (1, 1))
        panels = [self._made("LR", f"{place}_LR.png", low, NO_LR, pixels=True)]
        if self._interpolate:
            enlarged = None if low is None or source is None else imresize(low, source.scale)
            panels.append(self._made("bicubic", f"{place}_bicubic.png", enlarged, NO_LR))
        for index, (run, found) in enumerate(zip(self._runs, saved, strict=True)):
            absent = found if isinstance(found, str) else _misfit(found, size)
            file = f"{place}_{index}_{_safe(run.name)}.png"
            if not absent:
                write_bytes(self._folder / file, read_content(run.image(dataset, stem)))
            panels.append(_panel(f"run{index}", run.name, None if absent else file, absent, run=run.name))
        panels.append(self._made("HR", f"{place}_HR.png", high, "no reference"))
        metrics = {run.name: run.rows[dataset][stem] for run in self._runs if stem in run.rows.get(dataset, {})}
        return {"name": stem, "width": size[1], "height": size[0], "panels": panels, "metrics": metrics}

    def _read(self, source: PairedImageDataset, item: int, stem: str) -> tuple[Image | None, Image | None]:
        try:
            low, high = source.images(item)
        except UserError as error:
            self.notes.append(f"'{stem}': {error}")
            return None, None
        return (low, high) if source.crop_size is None else centre_crop(low, high, source.scale, source.crop_size)

    def _made(self, label: str, file: str, image: Image | None, absent: str, pixels: bool = False) -> Panel:
        if image is not None:
            write_bytes(self._folder / file, encode_image(image))
        return _panel(label, label, file if image is not None else None, absent, pixels)


def _saved(run: Run, dataset: str, stem: str) -> tuple[int, int] | str:
    """Return (height, width) of an image that a run restored, or why there is none."""
    path = run.image(dataset, stem)
    if dataset not in run.means:
        return "not tested on this set"
    try:
        return image_size(path) if path.is_file() else "image not saved"
    except UserError:
        return "damaged"


def _misfit(found: tuple[int, int], size: tuple[int, int]) -> str:
    """Return why an image cannot be laid over the others, or an empty text."""
    return "" if found == size else f"{found[0]}x{found[1]} pixels, not {size[0]}x{size[1]}"


def _panel(key: str, label: str, file: str | None, absent: str, pixels: bool = False, run: str | None = None) -> Panel:
    return {"key": key, "label": label, "run": run, "file": file, "pixels": pixels,
            "missing": None if file else absent}


def _safe(name: str) -> str:
    """Return a name that needs no quoting in a file name or an address."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
