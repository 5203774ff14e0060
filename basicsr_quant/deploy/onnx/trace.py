"""From a network to a graph: its operators are recorded for one input shape, what depends on no input is computed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate

from basicsr_quant.deploy.onnx.graph import Graph, Value
from basicsr_quant.deploy.onnx.numeric_operators import ARITHMETIC
from basicsr_quant.deploy.onnx.table import Operand, handlers
from basicsr_quant.errors import UserError

INPUT = "image"
LARGEST_COMPUTED = 2**12
GROWING = {*ARITHMETIC, "index_select"}
Emit = Callable[[Graph, Operand], Value]


@torch.library.custom_op("basicsr_quant::marked", mutates_args=())
def marked(x: torch.Tensor, name: str) -> torch.Tensor:
    """Return a copy of a tensor; a recording of the network shows where it was called, and with which name."""
    return x.clone()


@marked.register_fake
def _marked_shape(x: torch.Tensor, name: str) -> torch.Tensor:
    return torch.empty_like(x)


def graph_of(network: nn.Module, image: torch.Tensor, marks: Mapping[str, Emit]) -> tuple[Graph, Value, Value]:
    """Return a network as a graph, with its input and its output.

    Args:
        network: In eval mode, on the CPU; one tensor in, one out.
        image: Fixes the shape of the input; the values do not matter.
        marks: Name given to :func:`marked` -> what stands in the graph for it.

    Raises:
        UserError: The network calls an operator that has no entry in the table.
    """
    with torch.no_grad():
        recorded = make_fx(network, pre_dispatch=True)(image)
    own = [(tensor, _own_name(name)) for name, tensor in (*network.named_parameters(), *network.named_buffers())]
    return _Builder(recorded, Graph(own), marks).run()


def _own_name(name: str) -> str:
    """Return the name of a tensor in the frozen network, which wrappers lengthen."""
    return name.removeprefix("network.").replace(".layer.", ".")


class _Builder:
    def __init__(self, recorded: GraphModule, graph: Graph, marks: Mapping[str, Emit]) -> None:
        self.recorded, self.graph, self.marks = recorded, graph, marks
        self.values: dict[Node, Any] = {}

    def run(self) -> tuple[Graph, Value, Value]:
        entry = output = None
        for node in self.recorded.graph.nodes:
            if node.op == "placeholder":
                entry = _value(self.graph.free_name(INPUT), node.meta["val"])
                self.values[node] = entry
            elif node.op == "get_attr":
                self.values[node] = operator.attrgetter(node.target)(self.recorded)
            elif node.op == "call_function":
                with torch.no_grad():
                    self.values[node] = self.call(node)
            else:
                output = self.values.get(node.args[0])
        assert entry is not None and isinstance(output, Value)
        return self.graph, entry, output

    def call(self, node: Node) -> Any:
        def value_of(item: Any) -> Any:
            return self.values.get(item, item)

        given: Any = map_aggregate((node.args, node.kwargs), value_of)
        arguments, keywords = given
        assert callable(node.target)
        if node.target is operator.getitem:
            return arguments[0][arguments[1]]
        name = str(node.target).split(".")[1].rstrip("_")
        if str(node.target).startswith("basicsr_quant.marked"):
            return self.marks[arguments[1]](self.graph, arguments[0])
        if not _holds_value((arguments, keywords)):
            result = node.target(*arguments, **keywords)
            if name not in GROWING or not _grows(result, arguments):
                return result
        handler = handlers().get(name)
        if handler is None:
            raise UserError(f"export onnx: the network calls torch's '{node.target}', which is not exported")
        shape = node.meta["val"]
        try:
            made = handler(self.graph, shape, *arguments, **keywords)
        except (TypeError, KeyError, AttributeError, NotImplementedError) as error:
            raise UserError(f"export onnx: the network calls torch's '{node.target}' in a way that is not exported "
                            f"({' '.join(str(error).split())[:80]})") from error
        if isinstance(made, list):
            return [_value(each, like) for each, like in zip(made, shape, strict=True)]
        return _value(made, shape)


def _value(name: str, like: torch.Tensor) -> Value:
    return Value(name, tuple(int(side) for side in like.shape), like.dtype)


def _holds_value(arguments: Any) -> bool:
    found: list[Value] = []
    map_aggregate(arguments, lambda item: found.append(item) if isinstance(item, Value) else None)
    return bool(found)


def _grows(result: torch.Tensor, arguments: tuple[Any, ...]) -> bool:
    """Whether a constant is larger than each thing that it is made of, as a bias per head plus a mask per window."""
    sizes = [operand.numel() for operand in arguments if isinstance(operand, torch.Tensor)]
    return result.numel() > max(LARGEST_COMPUTED, *sizes)
