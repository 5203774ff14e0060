"""A table as data: cells, each an option file to train with and one to test with, under overrides."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from basicsr_quant.options.names import file_name_problem
from basicsr_quant.options.problems import quoted
from basicsr_quant.options.source import failure, read_tree

DEEPEST_VALUE = 16
LONGEST_TEXT = 4096
LARGEST_TABLE = 10_000

Value = str | int | float
Setting = Value | list[str]
CsvName = Annotated[str, Meta(pattern=r"^\w+\.csv\Z")]
Decimals = Annotated[int, Meta(ge=0, le=10)]


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

    name: Annotated[str, Meta(description="Name of the result folder.", pattern=r"^[A-Za-z0-9_]{1,100}\Z")]
    title: Annotated[str, Meta(description="Heading of the table.")]
    protocol: Annotated[str, Meta(description="How the numbers are measured, printed beside them.")]
    published: Annotated[CsvName | None, Meta(description="CSV of published numbers, in the package.")] = None
    average: Annotated[str | None, Meta(description="Label, such as seed, over which `show` averages.")] = None
    metrics: Annotated[dict[str, Decimals], Meta(description="Metrics to show and their decimals.")] = msgspec.field(
        default_factory=lambda: {"psnr": 2, "ssim": 4})
    lines: Annotated[Literal["cell", "dataset"], Meta(
        description="What a line of the shown table is: a cell, with a column for each data set, or a data set of a "
                    "cell, with a column for each metric.")] = "cell"
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
        raise failure(f"'{path}': {error}") from error


def expand(table: TableFile, settings: Mapping[str, Value]) -> Iterator[Cell]:
    """Yield the cells of a table, in order.

    Args:
        table: The file.
        settings: Values of ``{key}`` that win over the file's.

    Raises:
        UserError: A ``{key}`` has no value, the labels of a cell cannot name a folder, or there are too many cells.
    """
    count = 0
    for template in table.cells:
        axes: list[list[dict[str, Setting]]] = [
            *template.variants, *([{key: value} for value in values] for key, values in template.each.items())]
        for combination in itertools.product(*axes):
            known: dict[str, Setting] = {**table.settings, **settings}
            for values in combination:
                known.update(values)
            count += 1
            if count > LARGEST_TABLE:
                raise failure(f"table '{table.name}' has more than {LARGEST_TABLE} cells; divide it")
            yield _cell(template, _Values(known))


def _cell(template: CellTemplate, values: _Values) -> Cell:
    cell = Cell(labels=values.row(template.labels), weights=template.weights, test=values.step(template.test),
                train=None if template.train is None else values.step(template.train),
                published=values.row(template.published))
    if problem := file_name_problem(cell.name):
        raise failure(f"table: the labels {quoted(cell.labels)} name a folder: {problem}")
    return cell


def protocol_of(table: TableFile, settings: Mapping[str, Value]) -> str:
    """Return the table's protocol with its settings filled in."""
    return _Values({**table.settings, **settings}).text(table.protocol)


class _Values:
    """Values of ``{key}``, in which other keys may stand.

    Args:
        known: key -> value.
    """

    def __init__(self, known: Mapping[str, Setting]) -> None:
        self._known = known
        self._filled: dict[str, str] = {}
        self._open: list[str] = []

    def text(self, text: str) -> str:
        """Return a text with every ``{key}`` filled in."""
        filled = re.sub(r"\{(\w+)\}", lambda match: self._value(match[1], text), text)
        if len(filled) > LONGEST_TEXT:
            raise failure(f"table: '{text[:60]}' becomes longer than {LONGEST_TEXT} characters; shorten its values")
        return filled

    def step(self, step: Step) -> Step:
        """Return a step with its texts filled in."""
        return Step(opt=self.text(step.opt), force=[text for item in step.force for text in self._items(item)])

    def row(self, table: Mapping[str, Value]) -> dict[str, Value]:
        """Return labels, or keys of published numbers, with their texts filled in."""
        return {key: self.text(value) if isinstance(value, str) else value for key, value in table.items()}

    def _items(self, item: str) -> Iterator[str]:
        """Yield an item with its values filled in; ``{key}`` alone becomes the items of the list that it names."""
        key = item[1:-1] if re.fullmatch(r"\{\w+\}", item) else ""
        named = self._known.get(key)
        if not isinstance(named, list):
            yield self.text(item)
            return
        self._enter(key, item)
        for part in named:
            yield from self._items(part)
        self._open.pop()

    def _value(self, key: str, text: str) -> str:
        if key not in self._filled:
            self._enter(key, text)
            found = self._known[key]
            self._filled[key] = self.text(found) if isinstance(found, str) else str(found)
            self._open.pop()
        return self._filled[key]

    def _enter(self, key: str, text: str) -> None:
        if key not in self._known or key in self._open or len(self._open) == DEEPEST_VALUE:
            raise failure(f"table: '{text[:60]}' holds {{{key}}}, which has no value; give it by --set {key}=value")
        self._open.append(key)
