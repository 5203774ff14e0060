"""Plans: reading, matching, errors that name the line."""

from __future__ import annotations

from typing import Any

import pytest

from basicsr_quant.errors import UserError
from basicsr_quant.quant.plan import QuantPlan

DOBI = {"type": "dobi", "search": "one_sided"}
LINES: list[dict[str, Any]] = [
    {"*.qkv": {"split_out": 3, "weight": {"bits": 4, "per": "channel"}, "activation": {"bits": 8, "observer": DOBI}}},
    {"*.pos.*": "none"},
    {"op:matmul *.attns.*": {"lhs": {"bits": 4}, "rhs": {"bits": 3, "grid": "int_zero_point"}}},
    {"op:softmax": {"lhs": {"bits": 8}}},
    {"*.fc?": {"weight": {"bits": 2}, "bias": "none"}},
]


def test_first_match_wins() -> None:
    plan = QuantPlan.parse([{"a.*": {"weight": {"bits": 2}}}, {"*": {"weight": {"bits": 3}}}])
    assert plan.recipe_for("a.b")[1].weight.bits == 2
    assert plan.recipe_for("b.a")[1].weight.bits == 3
    assert QuantPlan.parse([]).recipe_for("a") is None


def test_operations_and_modules_are_apart() -> None:
    plan = QuantPlan.parse(LINES)
    assert plan.has_operations
    assert plan.recipe_for("x.attns.0") is None
    assert plan.recipe_for("x.attns.0", "matmul")[0] == 2
    assert plan.recipe_for("x.attns.0", "softmax")[0] == 3
    assert plan.recipe_for("x.pos.0") == (1, None)
    assert not QuantPlan.parse([{"op:matmul": "none"}]).has_operations


def test_numbered_operations() -> None:
    plan = QuantPlan.parse([{"op:matmul#1 a.*": {"lhs": {"bits": 2}}}, {"op:matmul *": {"lhs": {"bits": 3}}}])
    assert [plan.recipe_for("a.b", f"matmul#{number}")[0] for number in (0, 1, 11)] == [1, 0, 1]
    assert plan.lines[0].key == "op:matmul#1 a.*"
    assert plan.has_operations


def test_round_trip() -> None:
    plan = QuantPlan.parse(LINES)
    again = QuantPlan.parse(plan.as_list())
    assert again.lines == plan.lines
    assert again.as_list() == plan.as_list()
    assert [line.key for line in plan.lines] == ["*.qkv", "*.pos.*", "op:matmul *.attns.*", "op:softmax *", "*.fc?"]


def test_defaults_fill_what_a_line_leaves_out() -> None:
    defaults = {"weight": {"bits": 4, "observer": "percentile"}, "activation": {"bits": 8}}
    plan = QuantPlan.parse([{"a": {"weight": {}, "activation": {"bits": 2}}}, {"op:matmul": {"lhs": {}}}], defaults)
    recipe = plan.lines[0].recipe
    assert (recipe.weight.bits, recipe.weight.observer.type) == (4, "percentile")
    assert (recipe.activation.bits, recipe.activation.observer.type) == (2, "minmax")
    assert plan.lines[1].recipe.lhs.bits == 8


def part(**keys: Any) -> dict[str, Any]:
    return {"fc1": {"weight": {"bits": 4, **keys}}}


@pytest.mark.parametrize(("line", "message"), [
    ({"fc1": {"wieght": {"bits": 4}}}, "plan line 'fc1': unknown key 'wieght' \\(did you mean 'weight'\\?\\)"),
    (part(bist=3), "'fc1':weight: unknown key 'bist' \\(did you mean 'bits'\\?\\)"),
    ({"fc1": {"weight": {}}}, "'fc1':weight: bits must be an integer from 1 to 8, found None"),
    (part(bits=0), "found 0"),
    (part(bits=9), "found 9"),
    (part(bits=True), "found True"),
    (part(bits=4.5), "found 4.5"),
    (part(per="row"), "per must be one of tensor, channel"),
    (part(grid="float_ofset"), "'fc1':weight:grid.*did you mean 'float_offset'"),
    (part(grid={"type": "int_zero_point", "zero_point_gradient": "none"}), "'fc1':weight:grid.*full or detached"),
    (part(grid={"name": "float_offset"}), "expected a name or a map with 'type'"),
    (part(observer="minmx"), "'fc1':weight:observer.*did you mean 'minmax'"),
    (part(observer={"type": "percentile", "percentile": 40}), "percentile must be above 50"),
    (part(observer={"type": "dobi", "seach": "free"}), "observer dobi\\(seach=free\\).*unexpected keyword"),
    ({"fc1": {"activation": {"bits": 4, "per": "channel"}}}, "only weights have bounds per channel"),
    ({"fc1": {"split_out": 0}}, "split_out must be a positive integer"),
    ({"fc1": {"bias": {"bits": 8}}}, "biases stay in full precision"),
    ({"fc1": 4}, "expected a map, found 4"),
    ({"fc1": {"lhs": {"bits": 4}}}, "'lhs' belongs to op: lines"),
    ({"op:matmul *": {"weight": {"bits": 4}}}, "'weight' belongs to modules"),
    ({"op:matmul *": {"lhs": {"bits": 4}, "split_out": 2}}, "'split_out' belongs to modules"),
    ({"op:softmax *": {"rhs": {"bits": 4}}}, "a softmax has one operand"),
    ({"op:softmax#0 *": {"rhs": {"bits": 4}}}, "a softmax has one operand"),
    ({"op:einsum *": {"lhs": {"bits": 4}}}, "unknown operation 'einsum'; known: matmul, softmax"),
    ({"op:matmul#one *": {"lhs": {"bits": 4}}}, "unknown operation 'matmul#one'"),
    ({"a": "none", "b": "none"}, "plan line 1: expected one 'pattern: recipe'"),
])
def test_errors_name_the_line(line: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        QuantPlan.parse([line])
    assert "\n" not in str(raised.value)
