"""What is wrong with a value, in one line that names the key and where it was written."""

from __future__ import annotations

from typing import Any

import msgspec

from basicsr_quant.errors import UserError
from basicsr_quant.options.annotations import choices, describe
from basicsr_quant.options.source import INTEGERS, KeyPath, Tree, failure, joined
from basicsr_quant.registry import nearest

LONGEST_QUOTE = 60


def leaf(value: Any, annotation: Any) -> Any:
    """Return a value as msgspec converts it, an integral float as the integer that is wanted.

    Raises:
        msgspec.ValidationError: The value has the wrong type.
        TypeError: msgspec does not know the annotation.
    """
    try:
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        return msgspec.convert(_integral(value), annotation)


def _integral(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and int(value) in INTEGERS:
        return int(value)
    if isinstance(value, list):
        return [_integral(item) for item in value]
    return value


def quoted(value: Any) -> str:
    """Return a value as it is shown in messages, on one line."""
    words = {"None": "null", "True": "true", "False": "false"}
    text = repr(value)
    text = words.get(text, text)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


class Problems:
    """Makes the errors of a tree's keys.

    Args:
        tree: Where the values came from.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def error(self, path: KeyPath, problem: str) -> UserError:
        """Return the error of one key."""
        return failure(f"{self.tree.origin(path)}: {problem}")

    def wrong(self, path: KeyPath, annotation: Any, value: Any) -> UserError:
        """Return the error of a value of the wrong type."""
        hint = nearest(value, [str(choice) for choice in choices(annotation)]) if isinstance(value, str) else ""
        return self.error(path, f"'{joined(path)}' must be {describe(annotation)}, not {quoted(value)}{hint}")

    def unknown(self, path: KeyPath, known: list[str]) -> UserError:
        """Return the error of a key that is not in ``known``."""
        return self.error(path, f"unknown key '{joined(path)}'{nearest(str(path[-1]), known)}")
