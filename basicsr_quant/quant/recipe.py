"""What to do with one tensor, and with one module: the vocabulary of plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from basicsr_quant.errors import UserError
from basicsr_quant.quant.grids.base import Grid
from basicsr_quant.quant.observers.base import Target
from basicsr_quant.registry import OBSERVERS, QUANTIZERS, nearest

GRANULARITIES = ("tensor", "channel")


@dataclass(frozen=True)
class Spec:
    """A registered class by name, with its constructor's keyword arguments."""

    type: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: str | Mapping[str, Any], where: str) -> Spec:
        """Read ``name`` or ``{type: name, argument: value}``."""
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping) or "type" not in value:
            raise UserError(f"{where}: expected a name or a map with 'type', found {value!r}")
        return cls(value["type"], {key: item for key, item in value.items() if key != "type"})

    def describe(self) -> str:
        """Return ``name(argument=value)``."""
        inside = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.type}({inside})" if inside else self.type


@dataclass(frozen=True)
class TensorRecipe:
    """How one tensor is quantized.

    Attributes:
        bits: Width of a code, 1 to 8.
        grid: Name of a grid, ``float_offset`` or ``int_zero_point``, with its arguments.
        per: ``tensor`` for one pair of bounds, ``channel`` for one per output channel (weights only).
        observer: What chooses the bounds from data.
    """

    bits: int
    grid: Spec = field(default_factory=lambda: Spec("float_offset"))
    per: str = "tensor"
    observer: Spec = field(default_factory=lambda: Spec("minmax"))

    @classmethod
    def parse(cls, value: Any, where: str) -> TensorRecipe:
        """Read ``{bits: 4, grid: float_offset, per: tensor, observer: {...}}``.

        Raises:
            UserError: Unknown key, bits out of range, unknown granularity or name, arguments that do not suit.
        """
        table = _table(value, cls, where)
        bits = table.get("bits")
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
            raise UserError(f"{where}: bits must be an integer from 1 to 8, found {bits!r}")
        per = table.get("per", "tensor")
        if per not in GRANULARITIES:
            raise UserError(f"{where}: per must be one of {', '.join(GRANULARITIES)}, found {per!r}")
        grid = Spec.parse(table.get("grid", "float_offset"), f"{where}:grid")
        observer = Spec.parse(table.get("observer", "minmax"), f"{where}:observer")
        try:
            made: Grid = QUANTIZERS.build(grid.type, **grid.arguments)
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"{where}:grid {grid.describe()}: {error}") from error
        try:
            OBSERVERS.build(observer.type, Target(bits, made, None), **observer.arguments)
        except (TypeError, ValueError, UserError) as error:
            raise UserError(f"{where}:observer {observer.describe()}: {error}") from error
        return cls(bits, grid, per, observer)


@dataclass(frozen=True)
class Recipe:
    """How one module, or one operation, is quantized; None leaves that tensor alone.

    Attributes:
        weight: Of a Linear or Conv2d.
        activation: The module's input, or the tensor that an operand passes on.
        split_out: Cut a Linear's rows into this many equal parts with quantizers of their own (a fused qkv: 3).
        lhs: Left operand of a matrix product, or input of a softmax.
        rhs: Right operand of a matrix product.
    """

    weight: TensorRecipe | None = None
    activation: TensorRecipe | None = None
    split_out: int = 1
    lhs: TensorRecipe | None = None
    rhs: TensorRecipe | None = None

    @classmethod
    def parse(cls, value: Any, where: str, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
        """Read a recipe of a plan line.

        Args:
            value: Map of the fields of this class, each tensor's recipe a map again.
            where: Names the line.
            defaults: ``weight`` and ``activation`` -> keys for tensor recipes that leave them out.

        Raises:
            UserError: Unknown key or bad value; ``where`` names the line.
        """
        table = _table(value, cls, where, extra=("bias",))
        if table.get("bias", "none") not in ("none", None):
            raise UserError(f"{where}:bias: biases stay in full precision; write 'none'")
        split = table.get("split_out", 1)
        if isinstance(split, bool) or not isinstance(split, int) or split < 1:
            raise UserError(f"{where}:split_out must be a positive integer, found {split!r}")
        parts = {}
        for name in ("weight", "activation", "lhs", "rhs"):
            if table.get(name) not in (None, "none"):
                given = _table(table[name], TensorRecipe, f"{where}:{name}")
                default = (defaults or {}).get("weight" if name == "weight" else "activation", {})
                parts[name] = TensorRecipe.parse({**default, **given}, f"{where}:{name}")
                if parts[name].per == "channel" and name != "weight":
                    raise UserError(f"{where}:{name}: only weights have bounds per channel; write 'per: tensor'")
        return cls(split_out=split, **parts)

    def as_dict(self) -> dict[str, Any]:
        """Return plain types that :meth:`parse` reads back."""
        table: dict[str, Any] = {"split_out": self.split_out} if self.split_out > 1 else {}
        for name in ("weight", "activation", "lhs", "rhs"):
            recipe: TensorRecipe | None = getattr(self, name)
            if recipe is not None:
                entry = asdict(recipe)
                for spec in ("grid", "observer"):
                    entry[spec] = {"type": entry[spec]["type"], **entry[spec]["arguments"]}
                table[name] = entry
        return table


def _table(value: Any, struct: type, where: str, extra: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """Return a map whose keys are all fields of ``struct``."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a map, found {value!r}")
    known = [item.name for item in fields(struct)] + list(extra)
    for key in value:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), known)}")
    return value
