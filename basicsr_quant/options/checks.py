"""What types cannot say: agreement between keys."""

from __future__ import annotations

from collections.abc import Iterator

from basicsr_quant.options.method import Method, Problem
from basicsr_quant.options.names import file_name_problem
from basicsr_quant.options.optimization import SCHEDULERS
from basicsr_quant.options.problems import Problems
from basicsr_quant.options.source import Tree, joined
from basicsr_quant.options.types import Options, datasets_of_phase


def check(options: Options, tree: Tree, method: Method, is_train: bool) -> None:
    """Check one set of options.

    Raises:
        UserError: The first disagreement, with the place of the key.
    """
    for path, problem in [*_common(options, is_train), *method.check(options, is_train)]:
        raise Problems(tree).error(path, f"'{joined(path)}' {problem}")


def _common(options: Options, is_train: bool) -> Iterator[Problem]:
    yield from _names(options)
    if not options.datasets:
        yield ("datasets",), "is empty; at least one data set is needed"
    yield from _datasets(options)
    if options.val is not None and options.val.tile and options.val.tile_overlap >= options.val.tile:
        yield ("val", "tile_overlap"), f"must be smaller than val:tile, {options.val.tile}"
    if is_train:
        yield from _training(options)


def _names(options: Options) -> Iterator[Problem]:
    """Yield names that could lead out of the run's folders."""
    folders = [(("name",), options.name),
               *((("datasets", key, "name"), dataset.name) for key, dataset in options.datasets.items())]
    for path, name in folders:
        if problem := file_name_problem(name):
            yield path, f"names a folder: {problem}"
    suffix = None if options.val is None else options.val.suffix
    if suffix is not None and (problem := file_name_problem(suffix)):
        yield ("val", "suffix"), f"is the end of file names: {problem}"


def _datasets(options: Options) -> Iterator[Problem]:
    for key, dataset in options.datasets.items():
        if dataset.dataroot_lq is None and dataset.dataroot_gt is None:
            yield ("datasets", key), "has neither dataroot_gt nor dataroot_lq; name at least dataroot_lq"
        if dataset.only_last and dataset.exclude_last:
            yield ("datasets", key, "only_last"), "contradicts exclude_last; leave one of the two out"
        for name, size in (("gt_size", dataset.gt_size), ("crop_size", dataset.crop_size)):
            if size is not None and size % options.scale:
                yield ("datasets", key, name), f"is {size}, which is not a multiple of scale {options.scale}"


def _training(options: Options) -> Iterator[Problem]:
    if not datasets_of_phase(options, "train"):
        yield ("datasets", "train"), "is missing; training needs a training set"
    if options.train is not None and options.train.scheduler is not None:
        try:
            options.train.scheduler.build(SCHEDULERS)
        except ValueError as error:
            yield ("train", "scheduler"), f"does not fit together: {error}"
