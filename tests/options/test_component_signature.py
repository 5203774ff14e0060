"""Components: arguments against signatures, and building."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from basicsr_quant.errors import UserError
from basicsr_quant.options.annotations import describe, writable
from basicsr_quant.options.component import Component
from basicsr_quant.options.optimization import OPTIMIZERS, SCHEDULERS
from basicsr_quant.options.problems import Problems
from basicsr_quant.options.signature import checked_arguments
from basicsr_quant.options.source import Tree
from basicsr_quant.registry import Registry


class Example:
    """Has every kind of parameter."""

    def __init__(self, image: torch.Tensor, size: int | Sequence[int] = 3, rate: float | torch.Tensor = 0.1,
                 names: Sequence[str] = (), hook: Callable[[], None] | None = None, free: Any = None,
                 **others: Any) -> None:
        self.values = {"size": size, "rate": rate, "names": names, "free": free, **others}


def plain_function(first, second=2):  # type: ignore[no-untyped-def]
    return first, second


def unresolved(value: NotImported = 1) -> None:  # type: ignore[name-defined] # noqa: F821
    """Has an annotation that cannot be resolved."""


REGISTRY = Registry("example", {"absent": "basicsr_quant.no_such_module:Thing"})
REGISTRY.register("Example", Example)
REGISTRY.register("plain", plain_function)
REGISTRY.register("unresolved", unresolved)


def check(name: str, **arguments: Any) -> dict[str, Any]:
    return checked_arguments(Problems(Tree("f.yml", {}, {})), REGISTRY, name, arguments, ("block",))


def test_converted_arguments() -> None:
    assert check("Example", size=4.0, rate=1, names=["a"], free={"x": 1}, more=5) == {
        "size": 4, "rate": 1.0, "names": ["a"], "free": {"x": 1}, "more": 5}
    assert check("Example", size=[1, 2])["size"] == [1, 2]
    assert check("plain", first="x") == {"first": "x"}
    assert check("unresolved", value="x") == {"value": "x"}
    assert check("absent", anything=1) == {"anything": 1}


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("Example", {"image": 3}, "unknown key 'block:image'"),
    ("Example", {"size": "big"}, r"'block:size' must be an integer or a list \(of: an integer\), not 'big'"),
    ("Example", {"names": [1]}, r"must be a list \(of: a text\)"),
    ("plain", {"secnd": 3}, r"unknown key 'block:secnd' \(did you mean 'second'\?\)"),
])
def test_wrong_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(name, **arguments)


def test_build() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    adam = Component(type="Adam", arguments={"lr": 0.5, "betas": (0.9, 0.99)})
    optimizer = adam.build(OPTIMIZERS, params=[parameter])
    assert optimizer.defaults["lr"] == 0.5 and optimizer.defaults["betas"] == (0.9, 0.99)
    assert Component(type="plain", arguments={"first": 1}).build(REGISTRY, second=3) == (1, 3)
    assert Component(type="plain", arguments={"first": 1, "second": 4}).build(REGISTRY, second=3) == (1, 4)
    with pytest.raises(UserError, match="example 'plain': missing a required argument: 'first'"):
        Component(type="plain").build(REGISTRY)
    with pytest.raises(UserError, match="unknown example"):
        Component(type="nothing").build(REGISTRY)


def test_every_schedule_exists() -> None:
    for name in SCHEDULERS:
        assert isinstance(SCHEDULERS.get(name), type)


@pytest.mark.parametrize(("annotation", "kept", "words"), [
    (int | torch.Tensor, int, "an integer"),
    (tuple[float | torch.Tensor, float], tuple[float, float], "a list of 2 values (a number, a number)"),
    (tuple[int, ...], tuple[int, ...], "a list (of: an integer)"),
    (tuple[torch.Tensor, int], None, ""),
    (list[torch.Tensor], None, ""),
    (Sequence, list[Any], "a list (of: any value)"),
    (dict[str, int], dict[str, Any], "a block of keys"),
    (Callable[[], None], None, ""),
    (object, Any, "any value"),
    (torch.Tensor | None, None, ""),
])
def test_annotations(annotation: Any, kept: Any, words: str) -> None:
    assert writable(annotation) == kept
    if kept is not None:
        assert describe(kept) == words
