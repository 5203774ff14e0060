"""The validation or test sets of a run."""

from __future__ import annotations

import logging

from basicsr_quant.data.build import build_dataset, missing_folders
from basicsr_quant.data.paired import PairedImageDataset
from basicsr_quant.errors import UserError
from basicsr_quant.options.load import datasets_of_phase
from basicsr_quant.options.types import DatasetOptions, Options
from basicsr_quant.registry import nearest

logger = logging.getLogger("basicsr_quant")


def open_datasets(options: Options, phase: str) -> dict[str, PairedImageDataset]:
    """Open the data sets of a phase; an optional one whose folder is absent is left out, with a line.

    Args:
        options: Typed options.
        phase: ``val`` or ``test``.

    Returns:
        Name -> data set, in the order of the options.

    Raises:
        UserError: Two have one name (their results would overwrite each other), ``val:test_sets`` names one that is not
            in the options, or see :func:`build_dataset`.
    """
    found: dict[str, PairedImageDataset] = {}
    blocks = datasets_of_phase(options, phase)
    wanted = options.val.test_sets if phase == "test" and options.val is not None else None
    for name in wanted or ():
        known = [data.name for _, data in blocks]
        if name not in known:
            raise UserError(f"val:test_sets: no test set is called '{name}'{nearest(name, known)}")
    for key, data in blocks:
        if wanted is not None and data.name not in wanted:
            continue
        absent = missing_folders(data) if data.optional else []
        if absent:
            logger.info("datasets:%s is optional and '%s' does not exist; skipped", key, absent[0])
            continue
        if data.name in found:
            raise UserError(f"datasets:{key}:name: another {phase} set is called '{data.name}' too; rename one of them")
        found[data.name] = build_dataset(data, options.scale, phase, options.manual_seed, key)
    return found


def training_set(options: Options) -> tuple[str, DatasetOptions]:
    """Return key and block of the only training set.

    Raises:
        UserError: There is none, or several.
    """
    found = datasets_of_phase(options, "train")
    if len(found) != 1:
        raise UserError(f"datasets: exactly one training set is needed, found {len(found)}")
    return found[0]
