"""An ONNX graph under construction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from basicsr_quant.deploy.onnx.packages import onnx_package

OPSET, IR_VERSION = 21, 10
PRODUCER = "basicsr_quant"


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the graph's input, or that the graph computes for another reason."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Rounding:
    """A rounded activation in a graph.

    Attributes:
        name: Of the quantizer.
        before: Tensor that is rounded.
        after: Rounded tensor.
        nodes: First node of it in the graph, and the node behind its last.
    """

    name: str
    before: Value
    after: Value
    nodes: tuple[int, int]


class Graph:
    """Nodes in order of execution, constants, and where activations are rounded.

    Args:
        names: Tensors that have a name, which must not be collected while the graph is made, and the names.
    """

    def __init__(self, names: Sequence[tuple[torch.Tensor, str]] = ()) -> None:
        self.onnx = onnx_package("onnx")
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.roundings: list[Rounding] = []
        self._names = {id(tensor): name for tensor, name in names}
        self._named = [tensor for tensor, _ in names]
        self._placed: dict[Any, str] = {}
        self._taken: set[str] = set()

    def free_name(self, wanted: str) -> str:
        """Return a name that no tensor has yet."""
        name, number = wanted, 0
        while name in self._taken:
            number += 1
            name = f"{wanted}#{number}"
        self._taken.add(name)
        return name

    def constant(self, tensor: torch.Tensor, name: str | None = None, kind: int | None = None) -> str:
        """Return the name of a constant; tensors of the same content are stored once, unless they have names.

        Args:
            tensor: On the CPU.
            name: Wanted name, if the tensor has none of its own.
            kind: ONNX type in place of that of the dtype.
        """
        numbers = tensor.detach().contiguous().numpy()
        own = self._names.get(id(tensor))
        key = own or (hashlib.sha256(numbers.tobytes()).digest(), tensor.shape, tensor.dtype, kind)
        if key not in self._placed:
            if kind is not None:
                numbers = numbers.astype(self.onnx.helper.tensor_dtype_to_np_dtype(kind))
            placed = self.free_name(own or name or "constant")
            self.constants[placed] = self.onnx.numpy_helper.from_array(numbers, placed)
            self._placed[key] = placed
        return self._placed[key]

    def integers(self, *numbers: int) -> str:
        """Return the name of a constant list of int64."""
        name = f"integers:{','.join(map(str, numbers))}"
        if name not in self.constants:
            self.constants[name] = self.onnx.numpy_helper.from_array(torch.tensor(numbers).numpy(), name)
        return name

    def number(self, value: float, dtype: torch.dtype = torch.float32) -> str:
        """Return the name of a constant scalar."""
        name = f"{str(dtype).removeprefix('torch.')}:{value!r}"
        if name not in self.constants:
            self.constants[name] = self.onnx.numpy_helper.from_array(torch.tensor(value, dtype=dtype).numpy(), name)
        return name

    def name_of(self, operand: Value | torch.Tensor | float, dtype: torch.dtype = torch.float32) -> str:
        """Return the name of an operand: a value, a constant tensor, or a number of a dtype."""
        if isinstance(operand, Value):
            return operand.name
        return self.constant(operand) if isinstance(operand, torch.Tensor) else self.number(operand, dtype)

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one result; return the result's name."""
        result = self.free_name(name or operator.lower())
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [result], name=result, **attributes))
        return result

    def add_several(self, operator: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        """Add a node with several results."""
        results = [self.free_name(operator.lower()) for _ in range(count)]
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, results, name=results[0], **attributes))
        return results

    def model(self, nodes: Sequence[Any], inputs: Sequence[Value], outputs: Sequence[Value],
              facts: Mapping[str, str] | None = None) -> bytes:
        """Return nodes as a checked model with the constants that they use.

        Args:
            nodes: All of the graph's, or a part.
            inputs: Of fixed shapes.
            outputs: Of fixed shapes.
            facts: Metadata.
        """
        helper = self.onnx.helper
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(list(nodes), PRODUCER, [self._described(value) for value in inputs],
                                  [self._described(value) for value in outputs],
                                  [tensor for name, tensor in self.constants.items() if name in used])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                  producer_name=PRODUCER)
        helper.set_model_props(model, dict(facts or {}))
        self.onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data

    def _described(self, value: Value) -> Any:
        helper = self.onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=value.dtype).numpy().dtype)
        return helper.make_tensor_value_info(value.name, kind, value.shape)
