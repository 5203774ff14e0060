"""Keys of the published option files that are mapped to ours, or that upstream never reads."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

from basicsr_quant.options.method import Method, Translation
from basicsr_quant.options.source import KeyPath, Tree, joined, one_line

logger = logging.getLogger("basicsr_quant")

PATCHWISE_TILE = 128
DEAD = ("datasets:*:task",)


def _workers_share(queue: Any, dataset: dict[str, Any]) -> Any:
    workers = dataset.get("num_worker_per_gpu")
    if type(queue) is not int or type(workers) is not int or workers < 1:
        return queue
    return max(math.ceil(queue / workers), 2)


def _tile(patchwise: Any, validation: dict[str, Any]) -> Any:
    return (PATCHWISE_TILE if patchwise else 0) if isinstance(patchwise, bool) else patchwise


def _unchanged(value: Any, block: dict[str, Any]) -> Any:
    return value


def _pinned(mode: Any, dataset: dict[str, Any]) -> Any:
    return True if mode == "cuda" else dataset.get("pin_memory")


TRANSLATIONS = (
    Translation("gpu", "gpu", "the CUDA device of a single-process run", _unchanged),
    Translation("datasets:*:prefetch_mode", "pin_memory", "a setting of the loader: workers prefetch, cuda pins memory",
                _pinned),
    Translation("datasets:*:num_prefetch_queue", "prefetch_factor", "batches prepared ahead, shared by the workers",
                _workers_share),
    Translation("val:selfensemble_testing", "self_ensemble", "val:self_ensemble (the published code never reads it)",
                _unchanged),
    Translation("val:patchwise_testing", "tile",
                f"val:tile, {PATCHWISE_TILE} for true (the published code never reads it)", _tile),
)


def translate(tree: Tree, method: Method) -> None:
    """Map published keys to ours in place, one log line for each kind, and drop dead ones with one warning each."""
    for pattern in (*DEAD, *method.dead):
        dropped = list(matching(tree, pattern))
        for path in dropped:
            block = tree.block(path[:-1])
            if block is not None:
                del block[path[-1]]
        if dropped:
            logger.warning("%s: '%s'%s is ignored: the published code never reads it",
                           *_place(tree, dropped))
    for translation in (*TRANSLATIONS, *method.translations):
        found = [path for path in matching(tree, translation.pattern) if _map(tree, path, translation)]
        if found:
            logger.info("%s: '%s'%s is taken for %s", *_place(tree, found), translation.meaning)


def _place(tree: Tree, paths: list[KeyPath]) -> tuple[str, str, str]:
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return one_line(tree.origin(paths[0])), one_line(joined(paths[0])), more


def _map(tree: Tree, path: KeyPath, translation: Translation) -> bool:
    """Map one key; ours wins where both are given. Return whether something was given at all."""
    block = tree.block(path[:-1])
    if block is None:
        return False
    key = path[-1]
    origin, value = tree.origin(path), block[key]
    if value is None and key == translation.target:
        return False
    del block[key]
    ours = translation.value(value, block)
    if block.get(translation.target) is None and ours is not None and value is not None:
        tree.put((*path[:-1], translation.target), ours, origin)
    return True


def matching(tree: Tree, pattern: str) -> Iterator[KeyPath]:
    """Yield the key paths of a tree that a pattern names; ``*`` is any key of one level."""
    paths: list[KeyPath] = [()]
    for part in pattern.split(":"):
        paths = [(*path, key) for path in paths for key in (tree.block(path) or {}) if part in ("*", key)]
    yield from paths
