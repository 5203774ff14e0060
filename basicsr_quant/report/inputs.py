"""The files and folders that the option files of a table's cells start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from basicsr_quant.data.build import missing_folders
from basicsr_quant.io.weights import file_digest
from basicsr_quant.options.load import load_options
from basicsr_quant.options.types import Options
from basicsr_quant.report.cells import Cell, Step

MADE = ("unet_ckpt", "vae_ckpt")
GIVEN = ("sd", "osediff", "prompt_embedding", "text_encoder")


def weight_files(options: Options, trained: bool) -> dict[str, str]:
    """Return key of the options -> weights or patches that it names.

    Args:
        options: Of a training or a test.
        trained: Whether they belong to a cell that trains, whose quantization is not an input.
    """
    path, fields = options.path, options.path.__struct_fields__
    keys = [field for field in fields if field.startswith("pretrain_") or field in GIVEN]
    keys += [] if trained else [field for field in fields if field in MADE]
    found: dict[str, Any] = {f"path:{key}": getattr(path, key) for key in keys}
    found["pathFP:pretrain_network_FP"] = getattr(getattr(options, "pathFP", None), "pretrain_network_FP", None)
    found["cali_data"] = getattr(options, "cali_data", None)
    for name in ("network_Q", "network_g"):
        network = getattr(options, name, None)
        found[f"{name}:weights"] = None if network is None else network.arguments.get("weights")
    return {key: str(name) for key, name in found.items() if name}


def content_digests(files: Mapping[str, str]) -> Iterator[str]:
    """Yield a text for each file that changes with its content, and for each folder one that changes with its files."""
    for name in sorted(files.values()):
        path = Path(name)
        if path.is_dir():
            yield repr(sorted((str(file.relative_to(path)), file.stat().st_size) for file in path.rglob("*")))
        else:
            yield file_digest(name) if path.is_file() else "absent"


def missing(cell: Cell) -> list[str]:
    """Return the inputs of a cell that are not there, ``key 'path'`` each, those of its training first.

    What its training makes is no input. A test needs one of its sets; all that are absent are named.
    """
    found: dict[str, None] = {}
    for step in (cell.train, cell.test):
        if step is not None:
            found.update(dict.fromkeys(_missing(step, cell, is_train=step is cell.train)))
    return list(found)


def _missing(step: Step, cell: Cell, is_train: bool) -> Iterator[str]:
    options = load_options(step.opt, step.force, is_train=is_train)
    for key, data in options.datasets.items():
        if options.val is None and key.startswith("val"):
            continue
        yield from (f"datasets:{key} '{folder}'" for folder in missing_folders(data))
    made = cell.weights if cell.train is not None and not is_train else {}
    for key, name in weight_files(options, cell.train is not None).items():
        if key not in made and not Path(name).exists():
            yield f"{key} '{name}'"
