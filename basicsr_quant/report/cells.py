"""A table as data: cells, each an option file to train with and one to test with, under overrides."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from basicsr_quant.errors import UserError
from basicsr_quant.options.source import read_tree

Value = str | int | float
Setting = Value | list[str]


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of ``train.py`` or ``test.py``; an item of ``force`` that is just ``{key}`` may stand for a list."""

    opt: Annotated[str, Meta(description="Option file.")]
    force: Annotated[list[str], Meta(description="Settings of --force_yml.")] = []


class CellTemplate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One or more cells; ``{key}`` in any text stands for a value of ``each``."""

    labels: Annotated[dict[str, Value], Meta(description="What the cell is, by column.")]
    each: Annotated[dict[str, list[Setting]], Meta(description="Key -> values; one cell for every combination.")] = {}
    variants: Annotated[list[list[dict[str, Setting]]], Meta(
        description="Lists of sets of values; one cell for every combination of a set from each, times `each`.")] = []
    train: Annotated[Step | None, Meta(description="How its weights are made; absent: none are.")] = None
    test: Annotated[Step, Meta(description="How it is measured.")]
    weights: Annotated[dict[str, str], Meta(
        description="Key of the test's options -> file among the trained models.")] = msgspec.field(
            default_factory=lambda: {"path:pretrain_network_Q": "net_Q_latest.pth"})
    published: Annotated[dict[str, Value], Meta(description="Column -> value that finds the published number.")] = {}


class TableFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file under ``options/tables``."""

    name: Annotated[str, Meta(description="Name of the result folder.", pattern=r"^\w+$")]
    title: Annotated[str, Meta(description="Heading of the table.")]
    protocol: Annotated[str, Meta(description="How the numbers are measured, printed beside them.")]
    published: Annotated[str | None, Meta(description="CSV of published numbers, in the package.")] = None
    average: Annotated[str | None, Meta(description="Label, such as seed, over which `show` averages.")] = None
    metrics: Annotated[dict[str, int], Meta(description="Metrics to show and their decimals.")] = msgspec.field(
        default_factory=lambda: {"psnr": 2, "ssim": 4})
    settings: Annotated[dict[str, Setting], Meta(
        description="Values of {key} in all cells and in one another; --set replaces them.")] = {}
    budgets: Annotated[dict[str, dict[str, Value]], Meta(description="Name -> settings of another run.")] = {}
    cells: Annotated[list[CellTemplate], Meta(description="The cells.")]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell with everything filled in."""

    labels: dict[str, Value]
    train: Step | None
    test: Step
    weights: dict[str, str]
    published: dict[str, Value]

    @property
    def name(self) -> str:
        """Folder name made of the labels."""
        return "-".join(str(value).replace(" ", "_").replace("/", "_") for value in self.labels.values())


def read_table(path: str | Path) -> TableFile:
    """Read and check a table file.

    Raises:
        UserError: Names the file and what is wrong.
    """
    tree = read_tree(path)
    try:
        return msgspec.convert(tree.values, TableFile, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"'{path}': {error}") from error


def expand(table: TableFile, settings: Mapping[str, Value]) -> Iterator[Cell]:
    """Yield the cells of a table, in order.

    Args:
        table: The file.
        settings: Values of ``{key}`` that win over the file's.

    Raises:
        UserError: A ``{key}`` has no value.
    """
    for template in table.cells:
        axes: list[list[dict[str, Setting]]] = [
            *template.variants, *([{key: value} for value in values] for key, values in template.each.items())]
        for combination in itertools.product(*axes):
            known: dict[str, Setting] = {**table.settings, **settings}
            for values in combination:
                known.update(values)
            train = None if template.train is None else _fill_step(template.train, known)
            yield Cell(labels=_fill(template.labels, known), train=train, test=_fill_step(template.test, known),
                       weights=template.weights, published=_fill(template.published, known))


def protocol_of(table: TableFile, settings: Mapping[str, Value]) -> str:
    """Return the table's protocol with its settings filled in."""
    return _format(table.protocol, {**table.settings, **settings})


def _fill_step(step: Step, known: Mapping[str, Setting]) -> Step:
    return Step(opt=_format(step.opt, known), force=[text for item in step.force for text in _expanded(item, known)])


def _expanded(item: str, known: Mapping[str, Setting]) -> Iterator[str]:
    """Yield an item with its values filled in; ``{key}`` alone becomes the items of the list that it names."""
    named = known.get(item[1:-1]) if re.fullmatch(r"\{\w+\}", item) else None
    if isinstance(named, list):
        for part in named:
            yield from _expanded(part, known)
    else:
        yield _format(item, known)


def _fill(table: Mapping[str, Value], known: Mapping[str, Setting]) -> dict[str, Value]:
    return {key: _format(value, known) if isinstance(value, str) else value for key, value in table.items()}


def _format(text: str, known: Mapping[str, Setting]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise UserError(f"table: '{text}' holds {match[0]}, which has no value; give it by --set {match[1]}=value")
        found = known[match[1]]
        others = {key: item for key, item in known.items() if key != match[1]}
        return _format(found, others) if isinstance(found, str) else str(found)

    return re.sub(r"\{(\w+)\}", value, text)
