"""What one method adds to the options: its struct, its published keys and its checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from basicsr_quant.options.types import Options
from basicsr_quant.registry import Registry

Problem = tuple[tuple[str, ...], str]


class Translation(NamedTuple):
    """A published key that is accepted and mapped, with one log line.

    Args:
        pattern: Key with ``:`` between levels; ``*`` stands for any one level.
        target: Our key within the same block.
        meaning: End of the log line: what the key is taken for.
        value: Our value, from the published value and the block that holds it; ``None`` = nothing is set.
    """

    pattern: str
    target: str
    meaning: str
    value: Callable[[Any, dict[str, Any]], Any]


def no_problems(options: Any, is_train: bool) -> list[Problem]:
    """Check nothing."""
    return []


class Method(NamedTuple):
    """One row of the table of methods.

    Args:
        options: The outer struct.
        dead: Patterns of keys that published files hold and upstream never reads.
        translations: Published keys that are mapped, beside those common to all methods.
        check: From options and whether they are for training: (key, what is wrong) of what types cannot say.
    """

    options: type[Options]
    dead: tuple[str, ...] = ()
    translations: tuple[Translation, ...] = ()
    check: Callable[[Any, bool], list[Problem]] = no_problems


METHODS = Registry("model_type", {
    "SRModel": "basicsr_quant.options.methods.sr:METHOD",
    "BIDiffSRModel": "basicsr_quant.options.methods.bi_diffsr:METHOD",
    "OSEDiffModel": "basicsr_quant.options.methods.osediff:METHOD",
    "PassionSRModel": "basicsr_quant.options.methods.passionsr:METHOD",
    "TDQuantModel": "basicsr_quant.options.methods.tdquant:METHOD",
})
