"""The page: its data gathered from the runs, and one HTML file in which everything but the images is."""

from __future__ import annotations

import html
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from basicsr_quant import __version__
from basicsr_quant.errors import UserError
from basicsr_quant.io.atomic import write_text
from basicsr_quant.io.progress import track
from basicsr_quant.report.page.images import FOLDER, ImageWriter
from basicsr_quant.report.page.runs import Run
from basicsr_quant.report.page.sizes import UPSCALING, Size, size_of
from basicsr_quant.report.page.trainings import Curves, curves_of

INDEX = "index.html"
GENERATOR = "basicsr_quant report"
SCRIPTS = ("dom", "viewer", "compare", "table", "charts", "plots", "training", "layers", "main")
DECIMALS = {"psnr": 2}
SIMULATED = "Execution is simulated: values are rounded to the low-bit grid, products run in floating point."
BYTES = "Bytes are counted, not measured: codes packed; bounds, scales and the rest in float32."
SECONDS = ("Seconds per image are wall-clock seconds of restoring, measuring and writing in test.py, on the machine of "
           "each run; they say nothing about kernels that run on codes.")


def build_page(runs: Sequence[Run], folder: Path, title: str, limit: int, trainings: Sequence[Path] = ()) -> Path:
    """Write ``index.html`` and its images and return the path of the former.

    Args:
        runs: Of one scale.
        folder: Empty, new, or an earlier page, which is replaced.
        title: Heading.
        limit: Images of each data set at most.
        trainings: Folders of trainings whose curves are shown beside those of the runs.

    Raises:
        UserError: The folder holds something else, or cannot be written; one of ``trainings`` is none.
    """
    curves = curves_of(runs, trainings)
    _clear(folder)
    write_text(folder / INDEX, page(gather(runs, folder, limit, curves), title))
    return folder / INDEX


def gather(runs: Sequence[Run], folder: Path, limit: int, curves: Curves) -> dict[str, Any]:
    """Write the images of the runs and return everything that the page shows.

    Args:
        runs: Of one scale.
        folder: Where ``images`` goes.
        limit: Images of each data set at most.
        curves: Of trainings.
    """
    sizes, notes = _sizes(runs)
    shown = sorted(runs, key=lambda run: _rank(sizes.get(run.name)))
    writer = ImageWriter(folder, shown, limit, not any(size.kind == UPSCALING for size in sizes.values()))
    names = dict.fromkeys(name for run in shown for name in run.means)
    datasets = [{"name": name, "images": writer.dataset(name)} for name in track(names, "page", len(names))]
    quantized = [index for index, run in enumerate(shown) if run.name in sizes and sizes[run.name].is_quantized]
    metrics = _metrics(shown)
    best = _best(shown, quantized or list(range(len(shown))), metrics)
    protocols, different = _protocols(shown)
    return {
        "summary": f"{len(shown)} runs on {', '.join(names)}. {SIMULATED if quantized else ''}".strip(),
        "conventions": [*protocols, BYTES, SECONDS], "notes": [*different, *notes, *writer.notes, *curves.notes],
        "trainings": curves.trainings,
        "metrics": metrics, "runs": [_run(run, sizes.get(run.name)) for run in shown], "datasets": datasets,
        "best": shown[best].name, "start": {"left": "LR", "right": f"run{best}"},
    }


def page(content: dict[str, Any], title: str) -> str:
    """Return the HTML text that shows what :func:`gather` returned."""
    assets = resources.files("basicsr_quant.report.page") / "assets"
    parts = {
        "title": html.escape(title), "generator": f"{GENERATOR} {__version__}",
        "style": (assets / "page.css").read_text(),
        "script": "\n".join((assets / f"{name}.js").read_text() for name in SCRIPTS),
        "data": json.dumps(content, allow_nan=False).replace("<", "\\u003c"),
    }
    pieces = (assets / "page.html").read_text().split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def _clear(folder: Path) -> None:
    if not folder.exists():
        return
    index = folder / INDEX
    ours = index.is_file() and f'content="{GENERATOR} ' in index.read_text(errors="replace")
    if not folder.is_dir() or (not ours and any(folder.iterdir())):
        raise UserError(f"-o: '{folder}' is there and is no page of an earlier report; choose another folder")
    try:
        if (folder / FOLDER).is_dir():
            shutil.rmtree(folder / FOLDER)
    except OSError as error:
        raise UserError(f"-o: cannot replace '{folder}': {error.strerror or error}; choose another folder") from error


def _sizes(runs: Sequence[Run]) -> tuple[dict[str, Size], list[str]]:
    """Return name of a run -> size, and what is missing."""
    sizes, notes = {}, []
    for run in runs:
        try:
            if run.options is None:
                raise UserError(run.trouble)
            sizes[run.name] = size_of(run.options)
        except UserError as error:
            notes.append(f"'{run.name}': size not counted ({error})")
        if run.name in sizes and sizes[run.name].is_quantized and run.analysis is None:
            notes.append(f"'{run.name}': no bounds and histograms; make them with python -m basicsr_quant analyse -opt "
                         f"{next(iter(sorted(run.folder.glob('test_*.yml'))), 'OPTIONS')}")
    return sizes, notes


def _rank(size: Size | None) -> int:
    """Return where a run goes: interpolation, full precision, quantized, unknown."""
    if size is None:
        return 3
    return 2 if size.is_quantized else int(size.kind != UPSCALING)


def _run(run: Run, size: Size | None) -> dict[str, Any]:
    kind, count = (None, None) if size is None else (size.kind, size.bytes)
    return {"name": run.name, "kind": kind, "bytes": count, "seconds": run.seconds_per_image, "metrics": run.means,
            "analysis": run.analysis}


def _metrics(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return metric -> which way it improves and how many decimals are shown."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        known = run.options.val.metrics if run.options is not None and run.options.val is not None else {}
        for name in (name for values in run.means.values() for name in values):
            better = known[name].better if name in known else None
            found.setdefault(name, {"better": better, "decimals": DECIMALS.get(name, 4)})
    return found


def _best(runs: Sequence[Run], among: Sequence[int], metrics: Mapping[str, dict[str, Any]]) -> int:
    """Return the index of the run that is best by the first metric on its first data set."""
    first = next(iter(metrics), "")
    sign = -1 if first and metrics[first]["better"] == "lower" else 1
    return max(among, key=lambda index: sign * next(iter(runs[index].means.values()), {}).get(first, -math.inf * sign))


def _protocols(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Return a line for each metric, and one for each that was not measured alike by all runs."""
    found: dict[str, list[str]] = {}
    for run in runs:
        known = run.options.val.metrics if run.options is not None and run.options.val is not None else {}
        for name, metric in known.items():
            settings = ", ".join(f"{key} {value}" for key, value in metric.arguments.items())
            line = f"{name}: {metric.type}{f' ({settings})' if settings else ''}, mean over the images"
            if line not in found.setdefault(name, []):
                found[name].append(line)
    different = [f"'{name}' was measured in different ways: {'; '.join(lines)}"
                 for name, lines in found.items() if len(lines) > 1]
    return [line for lines in found.values() for line in lines], different
