"""The verb evaluate: a folder of super-resolved images against a folder of references, one CSV."""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.images import IMAGE_SUFFIXES, read_image
from basicsr_quant.metrics.names import NAMES, PROTOCOLS, NamedMetric, Protocol, named_metric

AVERAGE = "AVERAGE"
_SHOWN = 5


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line; its function is the parser's default ``func``."""
    parser = subparsers.add_parser(
        "evaluate", help="measure a folder of images", description="Measure SR images: one row each, and their mean."
    )
    parser.add_argument("--sr", required=True, metavar="DIR", help="folder of super-resolved images")
    parser.add_argument("--gt", metavar="DIR", help="folder of references with the same stems")
    parser.add_argument("--metrics", nargs="+", default=["psnr", "ssim"], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--crop-border", type=int, default=0, metavar="N", help="pixels cut on each side (with GT)")
    parser.add_argument("--y-channel", action="store_true", help="PSNR and SSIM on the luma")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="basicsr", help="whose formulas (default: basicsr)")
    parser.add_argument("--lpips-crop", choices=("border", "multiple"), default="border",
                        help="multiple: LPIPS on images cut to a multiple of N, as BI-DiffSR measures it")
    parser.add_argument("--weights", metavar="DIR", help="folder that holds the weights of the metric networks")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--csv", metavar="FILE", help="where to write the table")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the means beside the protocol, write the table.

    Args:
        arguments: Of the verb, see :func:`add_parser`.

    Raises:
        UserError: An option or a folder is wrong; or, after the table was written, some images could not be measured.
    """
    metrics = {name: named_metric(name, arguments.protocol) for name in arguments.metrics}
    settings = _settings(arguments)
    pairs = find_pairs(arguments.sr, _reference_folder(arguments.gt, metrics))
    for metric in metrics.values():
        metric.prepare(settings)
    table = measure(pairs, {name: metric.bind(settings) for name, metric in metrics.items()})
    if arguments.csv is not None:
        write_text(arguments.csv, table.to_csv())
    protocol = protocol_line(arguments.protocol, metrics, settings)
    sys.stdout.write(f"{protocol}\n{len(table.rows)} of {len(pairs)} images: {_means_line(table, metrics)}\n")
    if table.failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in table.failures.items())
        raise UserError(f"{len(table.failures)} of {len(pairs)} images could not be measured and are not in the mean; "
                        f"mend or remove them: {reasons}")


@dataclass(frozen=True)
class Table:
    """Values per image.

    Args:
        columns: Names of the metrics.
        rows: image -> values in the order of the columns; sorted by image.
        failures: image -> why it could not be measured.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]
    failures: Mapping[str, str]

    def averages(self) -> tuple[float, ...]:
        """Return the mean of each column in float64; NaN if no image was measured."""
        count = len(self.rows)
        return tuple(
            math.fsum(column) / count if all(map(math.isfinite, column)) else sum(column) / count
            for column in zip(*self.rows.values(), strict=True)
        ) or (math.nan,) * len(self.columns)

    def to_csv(self) -> str:
        """Return the columns image, metrics…; failed images have empty cells; the last row is AVERAGE."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["image", *self.columns])
        for name in sorted({*self.rows, *self.failures}):
            values = self.rows.get(name)
            writer.writerow([name, *([""] * len(self.columns) if values is None else map(_cell, values))])
        writer.writerow([AVERAGE, *map(_cell, self.averages())])
        return buffer.getvalue()


def find_pairs(sr_folder: str | Path, gt_folder: str | Path | None) -> list[tuple[Path, Path | None]]:
    """Pair the images of two folders by their exact stem, sorted.

    Args:
        sr_folder: Images to measure.
        gt_folder: References; None = none are needed.

    Raises:
        UserError: A folder is missing or holds no images, a stem occurs twice, or files have no partner.
    """
    sr = _images(sr_folder)
    if gt_folder is None:
        return [(path, None) for path in sr.values()]
    gt = _images(gt_folder)
    problems = [f"{_listed(sorted(sr.keys() - gt.keys()))} only in '{sr_folder}'"] if sr.keys() - gt.keys() else []
    if gt.keys() - sr.keys():
        problems.append(f"{_listed(sorted(gt.keys() - sr.keys()))} only in '{gt_folder}'")
    if problems:
        raise UserError(f"images are paired by equal stems, but these have no partner: {'; '.join(problems)}; "
                        "rename or remove them")
    return [(sr[stem], gt[stem]) for stem in sr]


def measure(
    pairs: Sequence[tuple[Path, Path | None]], metrics: Mapping[str, Callable[[Any, Any], float]]
) -> Table:
    """Measure every pair; an image that cannot be read or measured is noted and the others go on.

    Args:
        pairs: (SR file, GT file or None).
        metrics: name -> function of (sr, gt) as uint8 RGB images (H, W, 3).
    """
    rows: dict[str, tuple[float, ...]] = {}
    failures: dict[str, str] = {}
    for sr_path, gt_path in tqdm(pairs, desc="evaluate", unit="image"):
        try:
            sr = read_image(sr_path)
            gt = None if gt_path is None else read_image(gt_path)
            rows[sr_path.name] = tuple(metric(sr, gt) for metric in metrics.values())
        except UserError as error:
            failures[sr_path.name] = str(error)
    return Table(tuple(metrics), dict(sorted(rows.items())), failures)


def protocol_line(protocol: Protocol, metrics: Mapping[str, NamedMetric], settings: Mapping[str, Any]) -> str:
    """Return one line that says how the numbers were made."""
    if protocol == "osediff":
        return "protocol osediff: 8-bit RGB, whole images; OSEDiff's formulas for psnr and ssim on Y; maniqa is PIPAL's"
    parts = ["8-bit RGB"]
    if {"psnr", "ssim"} & metrics.keys():
        parts.append(f"psnr and ssim on {'Y' if settings['test_y_channel'] else 'RGB'}")
    border = settings["crop_border"]
    cut = [name for name, metric in metrics.items() if "crop_border" in metric.accepts]
    if border and settings["crop"] == "multiple" and "lpips" in cut:
        cut.remove("lpips")
        parts.append(f"lpips on images cut to a multiple of {border}")
    if border and cut:
        parts.append(f"{border} pixels cut on each side for {', '.join(cut)}")
    return f"protocol basicsr: {'; '.join(parts)}"


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.crop_border < 0:
        raise UserError(f"--crop-border {arguments.crop_border} is negative; write the number of pixels to cut")
    if arguments.protocol == "osediff" and arguments.crop_border:
        raise UserError("--protocol osediff measures whole images; leave out --crop-border")
    return {
        "crop_border": arguments.crop_border,
        "test_y_channel": arguments.y_channel,
        "crop": arguments.lpips_crop,
        "weights": arguments.weights,
        "device": arguments.device,
    }


def _reference_folder(folder: str | None, metrics: Mapping[str, NamedMetric]) -> str | None:
    comparing = [name for name, metric in metrics.items() if metric.needs_reference]
    if comparing and folder is None:
        raise UserError(f"{', '.join(comparing)} compare with references; name their folder by --gt")
    return folder if comparing else None


def _images(folder: str | Path) -> dict[str, Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"folder '{folder}' does not exist; check --sr and --gt")
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in images:
            raise UserError(f"'{images[path.stem]}' and '{path}' have one stem; remove one of them")
        images[path.stem] = path
    if not images:
        raise UserError(f"folder '{folder}' holds no images; check --sr and --gt")
    return images


def _listed(stems: Sequence[str]) -> str:
    rest = f" and {len(stems) - _SHOWN} more" if len(stems) > _SHOWN else ""
    return ", ".join(f"'{stem}'" for stem in stems[:_SHOWN]) + rest


def _means_line(table: Table, metrics: Mapping[str, NamedMetric]) -> str:
    values = zip(table.columns, table.averages(), strict=True)
    return ", ".join(f"{name} {value:.4f} ({metrics[name].better} is better)" for name, value in values)


def _cell(value: float) -> str:
    return f"{value:.6f}"
