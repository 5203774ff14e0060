"""The table of all option keys, written to ``docs/options.md``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from basicsr_quant.options.annotations import REQUIRED, Field, describe, field_of, fields_of
from basicsr_quant.options.component import Component
from basicsr_quant.options.effective import plain
from basicsr_quant.options.method import METHODS
from basicsr_quant.options.presets import MODES, presets_of
from basicsr_quant.options.types import Options

INTRODUCTION = """# Options

Written by `python -m basicsr_quant docs` from the types in `basicsr_quant/options`; do not edit.

Keys are written with `:` between levels, as for `--force_yml train:total_iter=300 val:val_freq=50`.
The command line wins over the file, the file over the preset of `mode`, the preset over the default.
A file without `mode` is `released`.
A *component* is a block `{type: NAME, argument: value, ...}`; its arguments are those of the named class.
"""


class Row(NamedTuple):
    """One key of the table."""

    key: str
    kind: str
    default: str
    description: str


def documentation() -> str:
    """Return the text of ``docs/options.md``."""
    common = list(rows(Options))
    parts = [INTRODUCTION, "\n## All methods\n\n", _table([tuple(row) for row in common], ())]
    for model_type in METHODS:
        own = [row for row in rows(METHODS.get(model_type).options) if row not in common]
        parts += [f"\n## `model_type: {model_type}`\n\n", _with_presets(model_type, own)]
    return "".join(parts)


def rows(struct: type[msgspec.Struct], path: tuple[str, ...] = ()) -> Iterator[Row]:
    """Yield a row for each key of a struct and of the blocks in it."""
    for name, field in fields_of(struct).items():
        here = (*path, name)
        if field.struct is not None and not issubclass(field.struct, Component):
            yield from rows(field.struct, here)
        elif field.family is not None and not issubclass(member := _member(field), Component):
            yield from rows(member, (*here, "*"))
        else:
            yield Row(":".join(here), _kind(field), _default(field.default), field.description)


def _member(field: Field) -> type[msgspec.Struct]:
    assert field.family is not None
    struct = field_of(field.family[1]).struct
    assert struct is not None
    return struct


def _kind(field: Field) -> str:
    names = f": {', '.join(field.registry)}" if field.registry is not None else ""
    if field.family is not None:
        registry = field_of(field.family[1]).registry
        return f"components by name: {', '.join(registry or ())}"
    if field.struct is not None:
        return f"component{names}"
    if field.registry is not None:
        return f"name{names}" if field.core is str else f"name or component{names}"
    return describe(field.annotation)


def _default(value: Any) -> str:
    return "required" if value is REQUIRED else "" if value is None else _cell(value)


def _cell(value: Any) -> str:
    """Return a value in YAML's flow style."""
    value = plain(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_cell(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_cell, value))}]"
    return "~" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _with_presets(model_type: str, own: list[Row]) -> str:
    presets, every = presets_of(model_type), list(rows(METHODS.get(model_type).options))
    cells: dict[str, list[str]] = {}
    for column, mode in enumerate(MODES):
        for key, value in _flat(presets.block((mode,)) or {}, {row.key for row in every}):
            cells.setdefault(key, [""] * len(MODES))[column] = f"`{_cell(value)}`"
    if not cells:
        return _table([tuple(row) for row in own], ())
    train = [row._replace(key=row.key.replace("*", "train", 1)) for row in every if row.key.startswith("datasets:*")]
    known = [row for row in [*train, *every] if row in own or row.key in cells]
    return _table([(*row, *cells.get(row.key, [""] * len(MODES))) for row in known], MODES)


def _flat(block: dict[str, Any], stops: set[str], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, value in block.items():
        key = ":".join((*path, name))
        if isinstance(value, dict) and key not in stops:
            yield from _flat(value, stops, (*path, name))
        else:
            yield key, value


def _table(lines: list[tuple[str, ...]], modes: tuple[str, ...]) -> str:
    head = ("key", "value", "default", "meaning", *modes)
    text = [head, ("---",) * len(head)]
    text += [(f"`{key}`", kind, f"`{default}`" if default else "", *rest) for key, kind, default, *rest in lines]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in text)
