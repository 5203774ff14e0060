"""A graph compared with the network that it was made of, in onnxruntime.

Rounding makes chaos: a difference in the last bit of an activation moves a code here and there, and everything behind
it a little. So the roundings are compared by themselves, to the bit, and so is what lies between them, given the
network's own rounded tensors; together they are the whole graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from basicsr_quant.deploy.onnx.graph import Graph, Value
from basicsr_quant.deploy.onnx.marking import Padded, activation_quantizers
from basicsr_quant.deploy.onnx.packages import onnx_package
from basicsr_quant.errors import UserError

TOLERANCE = 1e-4
LARGEST_DRIFT = 0.25


@dataclass(frozen=True)
class Recording:
    """What a frozen network computed for an image.

    Attributes:
        image: Input.
        rounded: Name of a quantizer -> (tensor, rounded tensor) of each call.
        output: Result.
    """

    image: torch.Tensor
    rounded: dict[str, list[tuple[torch.Tensor, torch.Tensor]]]
    output: torch.Tensor


@dataclass(frozen=True)
class Agreement:
    """How well a graph agrees with its network.

    Attributes:
        roundings: Number of rounded tensors, all equal to the bit.
        error: Largest difference between them, over the largest value of the tensor.
        drift: Root mean square difference of the whole outputs over the standard deviation of the network's.
    """

    roundings: int
    error: float
    drift: float


def record(network: Padded, image: torch.Tensor) -> Recording:
    """Run a frozen network, and keep what its quantizers of activations saw and returned."""
    rounded: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, result: torch.Tensor) -> None:
            rounded.setdefault(name, []).append((inputs[0].clone(), result.clone()))

        return hook

    quantizers = activation_quantizers(network.network)
    handles = [quantizer.register_forward_hook(keep(name)) for name, quantizer in quantizers]
    try:
        with torch.no_grad():
            output = network(image)
    finally:
        for handle in handles:
            handle.remove()
    return Recording(image, rounded, output)


def compare(graph: Graph, entry: Value, output: Value, recordings: Sequence[Recording]) -> Agreement:
    """Compare a graph with recordings, all but its drift.

    Raises:
        UserError: They disagree; the first place is named.
    """
    between, rounding = _parts(graph)
    befores, afters = [each.before for each in graph.roundings], [each.after for each in graph.roundings]
    whole = _Session(graph.model(between, [entry, *afters], _once([*befores, output])))
    roundings = _Session(graph.model(rounding, _once(befores), afters)) if rounding else None
    error = 0.0
    for recording in recordings:
        pairs = _pairs(graph, recording)
        seen = {value.name: before for value, (before, _) in zip(befores, pairs, strict=True)}
        rounded = {value.name: after for value, (_, after) in zip(afters, pairs, strict=True)}
        found = whole.run({entry.name: recording.image, **rounded})
        for name, wanted in {**seen, output.name: recording.output}.items():
            difference = _relative(found[name], wanted)
            error = max(error, difference)
            if not difference <= TOLERANCE:
                raise UserError(f"the graph differs from the network by {difference:.1e} of the largest value at "
                                f"'{name}', so it was not written; export another network, or report this")
        found = {} if roundings is None else roundings.run(seen)
        for name, numbers in found.items():
            if not np.array_equal(numbers, rounded[name].numpy()):
                raise UserError(f"onnxruntime does not round '{name}' as the network does, so the graph was not "
                                "written; try another version of onnxruntime")
    return Agreement(len(graph.roundings), error, 0.0)


def drift_of(data: bytes, entry: Value, output: Value, recordings: Sequence[Recording]) -> float:
    """Run a finished model; return its drift from recordings, see :class:`Agreement`.

    Raises:
        UserError: The drift is too large.
    """
    session, largest = _Session(data), 0.0
    for recording in recordings:
        found, wanted = session.run({entry.name: recording.image})[output.name], recording.output.numpy()
        drift = float(np.sqrt(np.mean((found - wanted) ** 2)) / max(float(wanted.std()), 1e-12))
        largest = max(largest, drift)
        if not drift <= LARGEST_DRIFT:
            raise UserError(f"onnxruntime's result differs from the network's by {drift:.2f} of its standard "
                            "deviation, so the graph was not written; export another network, or report this")
    return largest


def _pairs(graph: Graph, recording: Recording) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the recorded tensors in the order of the graph's roundings."""
    left = {name: list(calls) for name, calls in recording.rounded.items()}
    return [left[rounding.name].pop(0) for rounding in graph.roundings]


def _parts(graph: Graph) -> tuple[list[Any], list[Any]]:
    """Return the nodes between roundings, and those of roundings."""
    inside = {number for rounding in graph.roundings for number in range(*rounding.nodes)}
    return ([node for number, node in enumerate(graph.nodes) if number not in inside],
            [graph.nodes[number] for number in sorted(inside)])


def _once(values: list[Value]) -> list[Value]:
    return list({value.name: value for value in values}.values())


def _relative(found: np.ndarray[Any, Any], wanted: torch.Tensor) -> float:
    size = float(wanted.abs().max().clamp_min(1e-12))
    return float(np.abs(found - wanted.numpy()).max()) / size


class _Session:
    """A model in onnxruntime, on the CPU."""

    def __init__(self, data: bytes) -> None:
        runtime = onnx_package("onnxruntime")
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3
        self._session = runtime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])

    def run(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
        names = [output.name for output in self._session.get_outputs()]
        given = {entry.name: tensors[entry.name].numpy() for entry in self._session.get_inputs()}
        return dict(zip(names, self._session.run(names, given), strict=True))
