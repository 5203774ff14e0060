"""The plan: which tensors of which modules are quantized, and how. It is data."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from basicsr_quant.errors import UserError
from basicsr_quant.quant.recipe import ATTENTION_KEYS, MODULE_KEYS, PRODUCT_KEYS, Recipe

PRODUCTS = ("matmul", "softmax")
ATTENTION = "attention"
_OWNERS = {MODULE_KEYS: "modules", PRODUCT_KEYS: "op: lines", ATTENTION_KEYS: "op:attention lines"}


@dataclass(frozen=True)
class PlanLine:
    """One line: what it matches, and the recipe (None: leave in full precision).

    Attributes:
        pattern: fnmatch pattern on module names; for an operation, on the name of the module that executes it.
        operation: ``matmul`` or ``softmax`` for tensors that are no module's input, ``attention`` for both products of
            diffusers' attention modules, or None for modules. With ``#n`` it is the n-th (from 0) such operation in one
            call of the module.
        recipe: What to do.
    """

    pattern: str
    recipe: Recipe | None
    operation: str | None = None

    @property
    def key(self) -> str:
        """The line's text before the colon: ``*.qkv`` or ``op:matmul *.attns.*``."""
        return f"op:{self.operation} {self.pattern}" if self.operation else self.pattern


class QuantPlan:
    """An ordered list of lines; the first that matches a name decides.

    Args:
        lines: In order of precedence.
    """

    def __init__(self, lines: Sequence[PlanLine]) -> None:
        self.lines = tuple(lines)

    @classmethod
    def parse(cls, value: Sequence[Mapping[str, Any]],
              defaults: Mapping[str, Mapping[str, Any]] | None = None) -> QuantPlan:
        """Read a list of one-key maps, ``- '*.qkv': {...}``, ``- 'op:matmul *.attns.*': {...}``, ``- '*.pos.*': none``.

        Args:
            value: The lines.
            defaults: ``weight`` and ``activation`` -> keys (bits, observer, ...) for tensors whose recipes lack them.

        Raises:
            UserError: A line is malformed; it is named.
        """
        lines = []
        for index, entry in enumerate(value):
            if not isinstance(entry, Mapping) or len(entry) != 1:
                raise UserError(f"plan line {index + 1}: expected one 'pattern: recipe', found {entry!r}")
            key, recipe = next(iter(entry.items()))
            lines.append(_parse_line(str(key), recipe, defaults))
        return cls(lines)

    def as_list(self) -> list[dict[str, Any]]:
        """Return plain types that :meth:`parse` reads back."""
        return [{line.key: "none" if line.recipe is None else line.recipe.as_dict()} for line in self.lines]

    @property
    def has_operations(self) -> bool:
        """Whether some line is about an operation that must be looked for, with an example input."""
        return any(line.operation not in (None, ATTENTION) and line.recipe for line in self.lines)

    def recipe_for(self, name: str, operation: str | None = None) -> tuple[int, Recipe | None] | None:
        """Return (line index, recipe) of the first line that matches, or None if no line does.

        Args:
            name: Of a module.
            operation: ``matmul#1`` and so on, ``attention``, or None for the module itself.
        """
        wanted = {operation, operation.partition("#")[0]} if operation else {None}
        for index, line in enumerate(self.lines):
            if line.operation in wanted and fnmatch.fnmatchcase(name, line.pattern):
                return index, line.recipe
        return None


def _parse_line(key: str, value: Any, defaults: Mapping[str, Mapping[str, Any]] | None) -> PlanLine:
    where = f"plan line '{key}'"
    operation, pattern = None, key
    if key.startswith("op:"):
        operation, _, pattern = key.removeprefix("op:").partition(" ")
        pattern = pattern.strip() or "*"
        kind, number, order = operation.partition("#")
        if (kind not in PRODUCTS or (number and not order.isdecimal())) and operation != ATTENTION:
            raise UserError(f"{where}: unknown operation '{operation}'; known: {', '.join(PRODUCTS)}, with #n for the "
                            f"n-th, and {ATTENTION}")
    if value is None or value == "none":
        return PlanLine(pattern, None, operation)
    recipe = Recipe.parse(value, where, defaults)
    belonging = MODULE_KEYS if operation is None else ATTENTION_KEYS if operation == ATTENTION else PRODUCT_KEYS
    for name in recipe.present():
        if name not in belonging:
            owner = next(owner for keys, owner in _OWNERS.items() if name in keys)
            raise UserError(f"{where}: '{name}' belongs to {owner}")
    if operation and operation.startswith("softmax") and recipe.rhs is not None:
        raise UserError(f"{where}: a softmax has one operand, 'lhs'; its map is an operand of the product that follows")
    return PlanLine(pattern, recipe, operation)
