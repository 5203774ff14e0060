"""Presets: what ``mode`` fills in where the file and the command line say nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_args

from basicsr_quant.options.source import KeyPath, Tree, failure, joined, read_tree
from basicsr_quant.options.types import Mode
from basicsr_quant.registry import nearest

FOLDER = Path(__file__).parent / "presets"
MODES: tuple[str, ...] = get_args(Mode)


@cache
def presets_of(model_type: str) -> Tree:
    """Return the presets of a method: mode -> nested options."""
    return read_tree(FOLDER / f"{model_type}.yml")


def apply_preset(tree: Tree, model_type: str) -> None:
    """Fill keys that ``tree`` leaves out from the preset of its ``mode`` (``released`` if it has none), in place.

    Blocks that make a run do something (``train``, ``val``, ``datasets``, each data set) are filled but never created.
    A block with another ``type`` than the preset's is left as it is.

    Raises:
        UserError: There is no such mode.
    """
    mode = tree.values.get("mode") or "released"
    if mode not in MODES:
        hint = nearest(mode, list(MODES)) if isinstance(mode, str) else ""
        raise failure(f"{tree.origin(('mode',))}: 'mode' must be one of {', '.join(MODES)}{hint}")
    presets = presets_of(model_type)
    _fill(tree, tree.values, presets, presets.block((mode,)) or {}, (), (mode,))


def _fill(tree: Tree, block: dict[str, Any], presets: Tree, preset: dict[str, Any], path: KeyPath,
          source: KeyPath) -> None:
    for key, value in preset.items():
        here, there = (*path, key), (*source, key)
        if key not in block:
            if joined(here) not in ("train", "val", "datasets") and path != ("datasets",):
                block[key] = _copied(value)
                tree.origins[here] = presets.origin(there)
        elif isinstance(block[key], dict) and isinstance(value, dict) and _same_type(block[key], value):
            _fill(tree, block[key], presets, value, here, there)


def _same_type(block: dict[str, Any], preset: dict[str, Any]) -> bool:
    return "type" not in block or "type" not in preset or block["type"] == preset["type"]


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value
