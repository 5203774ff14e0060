"""From an option file and a command line to typed options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from basicsr_quant.options.arguments import Arguments, apply_debug, apply_force, parse_arguments
from basicsr_quant.options.checks import check
from basicsr_quant.options.convert import to_struct
from basicsr_quant.options.effective import difference, effective_yaml
from basicsr_quant.options.method import METHODS, Method
from basicsr_quant.options.optimization import COSINES
from basicsr_quant.options.presets import apply_preset
from basicsr_quant.options.problems import Problems, quoted
from basicsr_quant.options.published import translate
from basicsr_quant.options.published_passionsr import rebuild
from basicsr_quant.options.source import Tree, read_tree
from basicsr_quant.options.types import Options, datasets_of_phase
from basicsr_quant.registry import nearest

__all__ = ["Arguments", "datasets_of_phase", "difference", "effective_yaml", "load_options", "options_of",
           "parse_arguments"]


def load_options(path: str | Path, force: Sequence[str] = (), debug: bool = False, is_train: bool = True) -> Options:
    """Return the options of a file; command line > file > preset of ``mode`` > default.

    Args:
        path: YAML file, ours or a published one.
        force: Settings ``a:b=value`` of ``--force_yml``.
        debug: Whether ``--debug`` was given.
        is_train: Whether they are to train with (then a training set and a ``train`` block are needed).

    Raises:
        UserError: One line that names file, line and key.
    """
    tree = read_tree(path)
    apply_force(tree, force)
    if debug:
        apply_debug(tree)
    return options_of(tree, is_train)


def options_of(tree: Tree, is_train: bool = True) -> Options:
    """Return the options that plain values stand for; the arguments and errors are those of :func:`load_options`."""
    rebuild(tree)
    method = method_of(tree)
    translate(tree, method)
    apply_preset(tree, tree.values["model_type"])
    _complete_cosine(tree)
    options = to_struct(method.options, tree)
    check(options, tree, method, is_train)
    return options


def method_of(tree: Tree) -> Method:
    """Return the row of the table of methods that ``model_type`` names.

    Raises:
        UserError: ``model_type`` is absent or unknown.
    """
    model_type = tree.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in METHODS:
        given = "is missing" if model_type is None else f"must be a known method, not {quoted(model_type)}"
        hint = nearest(str(model_type), list(METHODS))
        raise Problems(tree).error(("model_type",), f"'model_type' {given}{hint}; known: {', '.join(METHODS)}")
    method: Method = METHODS.get(model_type)
    return method


def _complete_cosine(tree: Tree) -> None:
    """Let a cosine schedule without ``T_max`` end with the training, in place."""
    scheduler, train = tree.block(("train", "scheduler")), tree.block(("train",))
    if scheduler and train and scheduler.get("type") in COSINES and scheduler.get("T_max") is None \
            and train.get("total_iter") is not None:
        tree.put(("train", "scheduler", "T_max"), train["total_iter"], tree.origin(("train", "total_iter")))
