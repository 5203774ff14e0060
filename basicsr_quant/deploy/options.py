"""The part of a model's options that a packed file needs: what builds the network and restores images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from basicsr_quant.archs.external import outline_of
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.effective import plain
from basicsr_quant.options.load import options_of
from basicsr_quant.options.source import Tree
from basicsr_quant.options.types import Options, ValOptions
from basicsr_quant.registry import MODELS

DROPPED = ("datasets", "path", "train", "logger", "dist_params", "find_unused_parameters", "num_gpu", "gpu", "pathFP",
           "cali_data", "cali_data_save_path", "deterministic")
KEPT_OF_VAL = ("tile", "tile_overlap", "self_ensemble")
DATASETS = {False: "PairedImageDataset", True: "MultiPairedImageDataset"}


def stored_options(model: RestorationModel) -> dict[str, Any]:
    """Return what must be stored of a model's options, as plain types.

    Raises:
        UserError: The options ask for something else than the model's own network.
    """
    options = model.options
    values: dict[str, Any] = {key: value for key, value in plain(options).items() if key not in DROPPED}
    quant = values.get("quant", {})
    if quant.get("fp_test") or quant.get("bicubic") or quant.get("upscale_only", "none") != "none":
        raise UserError("quant:fp_test, quant:bicubic and quant:upscale_only put something else in the place of the "
                        "quantized network; leave them out to pack (full-precision weights: model_type: SRModel)")
    val = values.get("val")
    values["val"] = {} if val is None else {key: val[key] for key in KEPT_OF_VAL}
    plan = model.metadata("").get("plan")
    if "plan" in quant and plan:
        quant["plan"] = plan
    for key, block in values.items():
        if key.startswith("network_") and isinstance(block, dict) and block.get("type") == "spandrel":
            values[key] = {"type": "outlined", "outline": outline_of(block["weights"])}
    return values


def restored_options(values: Mapping[str, Any], source: str) -> Options:
    """Return the typed options that :func:`stored_options` was made of, without data sets and files.

    Args:
        values: As stored.
        source: Name of the packed file, for messages.

    Raises:
        UserError: They are none of this program's.
    """
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise UserError(f"'{source}' holds no options; pack the model again")
    enlarged = MODELS.get(values["model_type"]).condition_at_target_size
    images = {"test_1": {"name": "images", "dataroot_lq": ".", "type": DATASETS[enlarged]}}
    return options_of(Tree(f"'{source}'", {**values, "datasets": images}, {}), is_train=False)


def changed(options: Options, seed: int | None = None, tile: int | None = None) -> Options:
    """Return the options with another seed or tile size, where one is given.

    Raises:
        UserError: The method cannot work in tiles, or tiles are no wider than their overlap.
    """
    if seed is not None:
        options = msgspec.structs.replace(options, manual_seed=seed)
    if tile is None:
        return options
    val = options.val if options.val is not None else ValOptions()
    if 0 < tile <= val.tile_overlap:
        raise UserError(f"--tile {tile} must exceed the overlap of tiles, {val.tile_overlap}; choose a larger tile")
    return msgspec.structs.replace(options, val=msgspec.structs.replace(val, tile=tile))
