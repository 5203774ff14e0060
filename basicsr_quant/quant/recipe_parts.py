"""What a recipe says beside its tensors: a cut input, the equivalent transformation, smoothing of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from basicsr_quant.errors import UserError
from basicsr_quant.registry import nearest

PADDINGS = ("zero_after", "transformed_zero")
OFFSET_SIGNS = ("minus", "plus")
VECTOR_MAXIMA = ("channel", "tensor")


@dataclass(frozen=True)
class SplitIn:
    """Cut a layer's input and its weight in two, each part with bounds of its own.

    Attributes:
        at: Input channel where the second part begins; ``half`` cuts every tensor in the middle of its axis (rounded
            down); ``concat`` where the second of two joined inputs begins, which ``prepare`` is told.
        activation_axis: Axis of the input that is cut; the weight's is always that of the input channels. The released
            PassionSR has 1 everywhere, so it cuts token tensors (B, N, C) between tokens; -1 is the channels of a
            Linear's input.
    """

    at: int | Literal["half", "concat"] = "half"
    activation_axis: Literal[1, -1] = 1

    @classmethod
    def parse(cls, value: Any, where: str) -> SplitIn:
        """Read ``{at: half | concat | N, activation_axis: 1 | -1}``.

        Raises:
            UserError: Unknown key or bad value.
        """
        table = checked_table(value, cls, where)
        at, axis = table.get("at", "half"), table.get("activation_axis", 1)
        if isinstance(at, bool) or not (at in ("half", "concat") or (isinstance(at, int) and at > 0)):
            raise UserError(f"{where}:at must be half, concat or a positive channel number, found {at!r}")
        if isinstance(axis, bool) or axis not in (1, -1):
            raise UserError(f"{where}:activation_axis must be 1 or -1, found {axis!r}")
        return cls(at, axis)


@dataclass(frozen=True)
class Let:
    """The learnable equivalent transformation of a layer's input: (x - o) / s per channel.

    Attributes:
        alpha: Exponent of the initial scale; 0 leaves everything as it is, 0.5 makes both maxima equal.
        padding: Of a Conv2d. ``zero_after`` pads the rounded, transformed input with zeros, so the offset's term is
            smaller at the border (released code). ``transformed_zero`` pads the input itself, before the
            transformation; then the term is one number per output channel. Both are exact without quantization.
        offset_sign: ``minus`` for (x - o) / s. ``plus`` gives a Linear (x + o) / s, an error of the released code that
            its weights have learned with: the output is then off by 2 W o. A Conv2d always has ``minus``.
        vector_maximum: How the initial scale sees inputs (B, C): ``channel``, or ``tensor`` for one maximum over all of
            it, as the released code has it.
    """

    alpha: float = 0.3
    padding: Literal["zero_after", "transformed_zero"] = "zero_after"
    offset_sign: Literal["minus", "plus"] = "minus"
    vector_maximum: Literal["channel", "tensor"] = "channel"

    @classmethod
    def parse(cls, value: Any, where: str) -> Let:
        """Read a map of the fields.

        Raises:
            UserError: Unknown key or bad value.
        """
        table = checked_table(value, cls, where)
        _check_choice(table, "padding", PADDINGS, where)
        _check_choice(table, "offset_sign", OFFSET_SIGNS, where)
        _check_choice(table, "vector_maximum", VECTOR_MAXIMA, where)
        return cls(**{**table, "alpha": _exponent(table, where)})


@dataclass(frozen=True)
class Smooth:
    """Factors that balance the operands of attention's products.

    Attributes:
        alpha: Exponent of the initial factors, as in :class:`Let`.
        key_tokens: Number of key tokens M. It turns on a factor per key token between softmax map and values, which
            ties the model to inputs of just that many (released code). None leaves that factor out.
    """

    alpha: float = 0.3
    key_tokens: int | None = None

    @classmethod
    def parse(cls, value: Any, where: str) -> Smooth:
        """Read ``{alpha: 0.3, key_tokens: M | none}``.

        Raises:
            UserError: Unknown key or bad value.
        """
        table = checked_table(value, cls, where)
        tokens = None if table.get("key_tokens") == "none" else table.get("key_tokens")
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise UserError(f"{where}:key_tokens must be a positive integer or none, found {tokens!r}")
        return cls(_exponent(table, where), tokens)


def checked_table(value: Any, struct: type, where: str) -> Mapping[str, Any]:
    """Return a map whose keys are all fields of ``struct``.

    Raises:
        UserError: It is no map, or has another key.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a map, found {value!r}")
    known = [item.name for item in fields(struct)]
    for key in value:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), known)}")
    return value


def _check_choice(table: Mapping[str, Any], key: str, allowed: Sequence[str], where: str) -> None:
    if key in table and table[key] not in allowed:
        raise UserError(f"{where}:{key} must be one of {', '.join(allowed)}, found {table[key]!r}")


def _exponent(table: Mapping[str, Any], where: str) -> float:
    alpha = table.get("alpha", 0.3)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
        raise UserError(f"{where}:alpha must be a number from 0 to 1, found {alpha!r}")
    return float(alpha)
