"""Operators that move numbers, and do not change them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from basicsr_quant.deploy.onnx.graph import Graph
from basicsr_quant.deploy.onnx.table import Operand, handles

SAME = ("contiguous", "clone", "detach", "alias", "dropout", "type_as", "lift_fresh_copy")
RESHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze")
END = 2**63 - 1
PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _axis(dim: int, rank: int) -> int:
    return dim % rank


@handles(*SAME)
def _same(graph: Graph, out: Any, x: Operand, *rest: Any, **keywords: Any) -> str:
    return graph.name_of(x)


@handles("to", "_to_copy")
def _to(graph: Graph, out: Any, x: Operand, *rest: Any, **keywords: Any) -> str:
    if out.dtype == x.dtype:
        return graph.name_of(x)
    kind = graph.onnx.helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=out.dtype).numpy().dtype)
    return graph.add("Cast", graph.name_of(x), to=kind)


@handles(*RESHAPES)
def _reshape(graph: Graph, out: Any, x: Operand, *rest: Any, **keywords: Any) -> str:
    return graph.add("Reshape", graph.name_of(x), graph.integers(*out.shape))


@handles("expand", "expand_as")
def _expand(graph: Graph, out: Any, x: Operand, *rest: Any, **keywords: Any) -> str:
    return graph.add("Expand", graph.name_of(x), graph.integers(*out.shape))


@handles("permute")
def _permute(graph: Graph, out: Any, x: Operand, dims: Sequence[int]) -> str:
    return graph.add("Transpose", graph.name_of(x), perm=[_axis(dim, len(dims)) for dim in dims])


@handles("transpose")
def _transpose(graph: Graph, out: Any, x: Operand, first: int, second: int) -> str:
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return graph.add("Transpose", graph.name_of(x), perm=order)


@handles("t")
def _t(graph: Graph, out: Any, x: Operand) -> str:
    return _transpose(graph, out, x, 0, -1)


@handles("cat", "concat")
def _cat(graph: Graph, out: Any, tensors: Sequence[Operand], dim: int = 0) -> str:
    return graph.add("Concat", *map(graph.name_of, tensors), axis=dim)


@handles("stack")
def _stack(graph: Graph, out: Any, tensors: Sequence[Operand], dim: int = 0) -> str:
    place = graph.integers(_axis(dim, len(out.shape)))
    pieces = [graph.add("Unsqueeze", graph.name_of(tensor), place) for tensor in tensors]
    return graph.add("Concat", *pieces, axis=dim)


@handles("slice")
def _slice(graph: Graph, out: Any, x: Operand, dim: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> str:
    numbers = (start or 0, END if end is None else end, dim, step)
    return graph.add("Slice", graph.name_of(x), *map(graph.integers, numbers))


@handles("narrow")
def _narrow(graph: Graph, out: Any, x: Operand, dim: int, start: int, length: int) -> str:
    return _slice(graph, out, x, dim, start, start + length)


@handles("flip")
def _flip(graph: Graph, out: Any, x: Operand, dims: Sequence[int]) -> str:
    ends = [graph.integers(*[number] * len(dims)) for number in (-1, -END)]
    return graph.add("Slice", graph.name_of(x), *ends, graph.integers(*dims), graph.integers(*[-1] * len(dims)))


@handles("roll")
def _roll(graph: Graph, out: Any, x: Operand, shifts: Sequence[int], dims: Sequence[int]) -> str:
    name = graph.name_of(x)
    for shift, dim in zip(shifts, dims, strict=True):
        place, axis = graph.integers(-shift % x.shape[dim]), graph.integers(dim)
        back = graph.add("Slice", name, graph.integers(0), place, axis)
        name = graph.add("Concat", graph.add("Slice", name, place, graph.integers(END), axis), back, axis=dim)
    return name


@handles("select")
def _select(graph: Graph, out: Any, x: Operand, dim: int, index: int) -> str:
    return graph.add("Gather", graph.name_of(x), graph.number(index, torch.int64), axis=dim)


@handles("index_select")
def _index_select(graph: Graph, out: Any, x: Operand, dim: int, index: torch.Tensor) -> str:
    return graph.add("Gather", graph.name_of(x), graph.constant(index, "index"), axis=dim)


@handles("unbind")
def _unbind(graph: Graph, out: Any, x: Operand, dim: int = 0) -> list[str]:
    return [_select(graph, None, x, dim, index) for index in range(len(out))]


@handles("chunk", "split", "split_with_sizes")
def _split(graph: Graph, out: Any, x: Operand, parts: Any, dim: int = 0) -> list[str]:
    sizes = graph.integers(*(piece.shape[dim] for piece in out))
    return graph.add_several("Split", graph.name_of(x), sizes, count=len(out), axis=dim)


@handles("repeat")
def _repeat(graph: Graph, out: Any, x: Operand, counts: Sequence[int]) -> str:
    shape = [1] * (len(counts) - len(x.shape)) + list(x.shape)
    return graph.add("Tile", graph.add("Reshape", graph.name_of(x), graph.integers(*shape)), graph.integers(*counts))


@handles("pad")
def _pad(graph: Graph, out: Any, x: Operand, pads: Sequence[int], mode: str = "constant", value: Any = None) -> str:
    sides = [[0] * len(x.shape), [0] * len(x.shape)]
    for number, amount in enumerate(pads):
        sides[number % 2][-1 - number // 2] = amount
    filling = [graph.number(float(value or 0))] if mode == "constant" else []
    return graph.add("Pad", graph.name_of(x), graph.integers(*sides[0], *sides[1]), *filling, mode=PAD_MODES[mode])


@handles("pixel_shuffle")
def _pixel_shuffle(graph: Graph, out: Any, x: Operand, factor: int) -> str:
    return graph.add("DepthToSpace", graph.name_of(x), blocksize=factor, mode="CRD")


@handles("pixel_unshuffle")
def _pixel_unshuffle(graph: Graph, out: Any, x: Operand, factor: int) -> str:
    batch, channels, height, width = x.shape
    parts = graph.integers(batch, channels, height // factor, factor, width // factor, factor)
    turned = graph.add("Transpose", graph.add("Reshape", graph.name_of(x), parts), perm=[0, 1, 3, 5, 2, 4])
    return graph.add("Reshape", turned, graph.integers(*out.shape))
