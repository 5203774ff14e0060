"""What to do with one tensor, and with one module: the vocabulary of plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from basicsr_quant.errors import UserError
from basicsr_quant.quant.grids.base import Grid
from basicsr_quant.quant.observers.base import Target
from basicsr_quant.quant.recipe_parts import Let, Smooth, SplitIn, checked_table
from basicsr_quant.registry import OBSERVERS, QUANTIZERS

GRANULARITIES = ("tensor", "channel")
MODULE_KEYS = ("weight", "activation", "bias", "split_out", "split_in", "let")
PRODUCT_KEYS = ("lhs", "rhs")
ATTENTION_KEYS = ("query", "key", "map", "value", "smooth")
_TENSORS = ("weight", "activation", "bias", "lhs", "rhs", "query", "key", "map", "value")
_PARTS: Mapping[str, type[SplitIn] | type[Let] | type[Smooth]] = {"split_in": SplitIn, "let": Let, "smooth": Smooth}


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
        grid: Name of a grid, ``float_offset``, ``int_zero_point`` or ``symmetric_step``, with its arguments.
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
        table = checked_table(value, cls, where)
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
        bias: Of a Linear or Conv2d, with one pair of bounds.
        split_out: Cut a Linear's rows into this many equal parts with quantizers of their own (a fused qkv: 3).
        split_in: Cut input and weight in two along the input channels.
        let: Transform the input equivalently before it is rounded.
        lhs: Left operand of a matrix product, or input of a softmax.
        rhs: Right operand of a matrix product.
        query: Left operand of attention's first product.
        key: Right operand of attention's first product.
        map: Left operand of attention's second product, the softmax's output.
        value: Right operand of attention's second product.
        smooth: Balance the operands of attention before they are rounded.
    """

    weight: TensorRecipe | None = None
    activation: TensorRecipe | None = None
    bias: TensorRecipe | None = None
    split_out: int = 1
    split_in: SplitIn | None = None
    let: Let | None = None
    lhs: TensorRecipe | None = None
    rhs: TensorRecipe | None = None
    query: TensorRecipe | None = None
    key: TensorRecipe | None = None
    map: TensorRecipe | None = None
    value: TensorRecipe | None = None
    smooth: Smooth | None = None

    @classmethod
    def parse(cls, value: Any, where: str, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
        """Read a recipe of a plan line.

        Args:
            value: Map of the fields of this class, each tensor's recipe a map again.
            where: Names the line.
            defaults: ``weight`` (for biases too) and ``activation`` -> keys for tensor recipes that leave them out.

        Raises:
            UserError: Unknown key, bad value or impossible combination; ``where`` names the line.
        """
        given = {name: item for name, item in checked_table(value, cls, where).items() if item not in (None, "none")}
        split = given.get("split_out", 1)
        if isinstance(split, bool) or not isinstance(split, int) or split < 1:
            raise UserError(f"{where}:split_out must be a positive integer, found {split!r}")
        tensors: dict[str, Any] = {name: _tensor(name, given[name], where, defaults or {})
                                   for name in _TENSORS if name in given}
        parts: dict[str, Any] = {name: struct.parse(given[name], f"{where}:{name}")
                                 for name, struct in _PARTS.items() if name in given}
        for name in ("split_in", "let"):
            if split > 1 and name in parts:
                raise UserError(f"{where}: 'split_out' cannot be combined with '{name}'; leave one of them out")
        if "split_in" in parts and not {"weight", "activation"} & tensors.keys():
            raise UserError(f"{where}: 'split_in' cuts what is quantized; add a 'weight' or an 'activation'")
        return cls(split_out=split, **tensors, **parts)

    def as_dict(self) -> dict[str, Any]:
        """Return plain types that :meth:`parse` reads back."""
        table: dict[str, Any] = {"split_out": self.split_out} if self.split_out > 1 else {}
        for name in (*_TENSORS, *_PARTS):
            part = getattr(self, name)
            if part is not None:
                entry = asdict(part)
                for spec in ("grid", "observer") if name in _TENSORS else ():
                    entry[spec] = {"type": entry[spec]["type"], **entry[spec]["arguments"]}
                table[name] = entry
        return table

    def present(self) -> list[str]:
        """Return the names of the fields that say something."""
        return [name for name in (*_TENSORS, *_PARTS) if getattr(self, name) is not None] + (
            ["split_out"] if self.split_out > 1 else [])


def _tensor(name: str, value: Any, where: str, defaults: Mapping[str, Mapping[str, Any]]) -> TensorRecipe:
    """Return one tensor's recipe; a bias takes the weight's defaults, but for their granularity."""
    given = checked_table(value, TensorRecipe, f"{where}:{name}")
    default = dict(defaults.get("weight" if name in ("weight", "bias") else "activation", {}))
    if name == "bias":
        default.pop("per", None)
    recipe = TensorRecipe.parse({**default, **given}, f"{where}:{name}")
    if recipe.per == "channel" and name != "weight":
        raise UserError(f"{where}:{name}: only weights have bounds per channel; write 'per: tensor'")
    return recipe
