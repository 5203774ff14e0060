"""The command line of ``train.py`` and ``test.py``, and what ``--force_yml`` does to a file's options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

from basicsr_quant.options.source import LONGEST_KEY, Tree, failure, one_line, parse

LONGEST_ORIGIN = 200


class Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says.

    Args:
        opt: Option file.
        launcher: ``none``, ``pytorch`` (torchrun) or ``slurm``.
        auto_resume: Go on from the newest valid state of the run.
        debug: Validate every 8 iterations, print every one.
        force_yml: Settings ``a:b=value`` that overrule the file.
        local_rank: Given by old launchers; the environment decides.
    """

    opt: str
    launcher: str
    auto_resume: bool
    debug: bool
    force_yml: list[str]
    local_rank: int


def parse_arguments(argv: Sequence[str] | None, is_train: bool) -> Arguments:
    """Parse the command line of ``train.py`` or ``test.py``; ``None`` = that of this process."""
    parser = argparse.ArgumentParser(prog="train.py" if is_train else "test.py", allow_abbrev=False,
                                     description="Train what an option file describes." if is_train else
                                     "Test what an option file describes.")
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm"), default="none",
                        help="pytorch: started by torchrun")
    parser.add_argument("--auto_resume", action="store_true", help="go on from the newest valid state of this run")
    parser.add_argument("--debug", action="store_true", help="validate every 8 iterations, print every one")
    parser.add_argument("--force_yml", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="overrule options, for example: bit=4 train:optim_bound:lr=1e-3")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return Arguments(**vars(parser.parse_args(argv)))


def apply_force(tree: Tree, settings: Sequence[str]) -> None:
    """Overrule options in place by ``a:b=value``; the value is YAML, split off at the first ``=``.

    Raises:
        UserError: A setting has no ``=``, no key, or a value that is not YAML.
    """
    for setting in settings:
        origin = one_line(f"--force_yml {setting[:LONGEST_ORIGIN]}{'...' if len(setting) > LONGEST_ORIGIN else ''}")
        key, sign, text = setting.partition("=")
        path = tuple(key.strip().split(":"))
        if not sign or not all(path) or not key.isprintable() or max(map(len, path)) > LONGEST_KEY:
            raise failure(f"{origin}: not a setting; write KEY=VALUE, with ':' between the levels of the key")
        tree.put(path, parse(text, origin), origin)


def apply_debug(tree: Tree) -> None:
    """Make a run a short one to look at: name ``debug_*``, validation every 8 iterations, a log line for each."""
    name = tree.values.get("name")
    if isinstance(name, str) and not name.startswith("debug_"):
        tree.put(("name",), f"debug_{name}", tree.origin(("name",)))
    if tree.block(("val",)) is not None:
        tree.put(("val", "val_freq"), 8, "--debug")
    if tree.values.get("logger") is None or tree.block(("logger",)) is not None:
        tree.put(("logger", "print_freq"), 1, "--debug")
