"""Plans: reading, matching, errors that name the line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


TENSORS = st.fixed_dictionaries({"bits": st.integers(1, 8)}, optional={
    "grid": st.sampled_from(["float_offset", {"type": "int_zero_point", "zero_point_gradient": "detached"}]),
    "observer": st.sampled_from(["minmax", DOBI, {"type": "ema_minmax", "momentum": 1}])})
ALPHAS = st.floats(0, 1)
MODULES = st.fixed_dictionaries({"weight": TENSORS | st.builds(lambda tensor: {**tensor, "per": "channel"}, TENSORS)},
                                optional={
    "activation": TENSORS, "bias": TENSORS | st.just("none"),
    "split_in": st.fixed_dictionaries({}, optional={"at": st.integers(1, 99) | st.sampled_from(["half", "concat"]),
                                                    "activation_axis": st.sampled_from([1, -1])}),
    "let": st.fixed_dictionaries({}, optional={
        "alpha": ALPHAS, "padding": st.sampled_from(["zero_after", "transformed_zero"]),
        "offset_sign": st.sampled_from(["minus", "plus"]), "vector_maximum": st.sampled_from(["channel", "tensor"])}),
})
ATTENTIONS = st.fixed_dictionaries({}, optional={
    **dict.fromkeys(("query", "key", "map", "value"), TENSORS),
    "smooth": st.fixed_dictionaries({}, optional={"alpha": ALPHAS, "key_tokens": st.integers(1, 4096) | st.none()})})


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.builds(lambda recipe: {"*.conv": recipe}, MODULES)
                      | st.builds(lambda recipe: {"op:attention *.attn1": recipe}, ATTENTIONS), max_size=3))
def test_round_trip_of_whatever_is_read(lines: list[dict[str, Any]]) -> None:
    plan = QuantPlan.parse(lines)
    written = json.loads(json.dumps(plan.as_list()))
    assert QuantPlan.parse(written).lines == plan.lines
    assert not plan.has_operations
    assert [set(line.recipe.present()) for line in plan.lines] == [
        {name for name, part in next(iter(line.values())).items() if part != "none"} for line in lines]


def test_a_bias_takes_the_weight_s_defaults() -> None:
    defaults = {"weight": {"bits": 4, "per": "channel", "observer": "percentile"}, "activation": {"bits": 8}}
    recipe = QuantPlan.parse([{"a": {"weight": {}, "bias": {}}}], defaults).lines[0].recipe
    assert (recipe.bias.bits, recipe.bias.per, recipe.bias.observer.type) == (4, "tensor", "percentile")
    assert recipe.weight.per == "channel"


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
    ({"fc1": {"bias": {"bits": 8, "per": "channel"}}}, "'fc1':bias: only weights have bounds per channel"),
    ({"fc1": 4}, "expected a map, found 4"),
    ({"fc1": {"weight": {"bits": 4}, "split_in": {"at": "middle"}}}, "split_in:at must be half, concat or a positive"),
    ({"fc1": {"weight": {"bits": 4}, "split_in": {"at": True}}}, "split_in:at must be half"),
    ({"fc1": {"weight": {"bits": 4}, "split_in": {"axis": 1}}}, "split_in: unknown key 'axis'"),
    ({"fc1": {"weight": {"bits": 4}, "split_in": {"activation_axis": 2}}}, "activation_axis must be 1 or -1, found 2"),
    ({"fc1": {"bias": {"bits": 4}, "split_in": {"at": 2}}}, "'split_in' cuts what is quantized; add a 'weight'"),
    ({"fc1": {"weight": {"bits": 4}, "split_out": 2, "let": {}}}, "'split_out' cannot be combined with 'let'"),
    ({"fc1": {"weight": {"bits": 4}, "split_out": 2, "split_in": {}}}, "cannot be combined with 'split_in'"),
    ({"fc1": {"let": {"pading": "zero_after"}}}, "let: unknown key 'pading' \\(did you mean 'padding'\\?\\)"),
    ({"fc1": {"let": {"padding": "zero"}}}, "let:padding must be one of zero_after, transformed_zero, found 'zero'"),
    ({"fc1": {"let": {"offset_sign": "+"}}}, "let:offset_sign must be one of minus, plus"),
    ({"fc1": {"let": {"vector_maximum": 1}}}, "let:vector_maximum must be one of channel, tensor"),
    ({"fc1": {"let": {"alpha": 2}}}, "let:alpha must be a number from 0 to 1, found 2"),
    ({"fc1": {"query": {"bits": 4}}}, "'query' belongs to op:attention lines"),
    ({"op:attention *": {"lhs": {"bits": 4}}}, "'lhs' belongs to op: lines"),
    ({"op:attention *": {"query": {"bits": 4}, "let": {}}}, "'let' belongs to modules"),
    ({"op:attention *": {"map": {"bits": 4, "per": "channel"}}}, "map: only weights have bounds per channel"),
    ({"op:attention *": {"smooth": {"key_tokens": 0}}}, "key_tokens must be a positive integer or none, found 0"),
    ({"op:attention *": {"smooth": {"alpha": "x"}}}, "smooth:alpha must be a number from 0 to 1"),
    ({"op:attention#1 *": {"query": {"bits": 4}}}, "unknown operation 'attention#1'"),
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
