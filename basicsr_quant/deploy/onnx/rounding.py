"""Grids in ONNX: activations as Clip, Sub, QuantizeLinear, DequantizeLinear, Add; weights as codes."""

from __future__ import annotations

import torch

from basicsr_quant.deploy.onnx.graph import Graph, Rounding, Value
from basicsr_quant.errors import UserError
from basicsr_quant.quant.grids.float_offset import FloatOffsetGrid
from basicsr_quant.quant.grids.symmetric_step import SymmetricStepGrid, step_and_negatives
from basicsr_quant.quant.quantizer import Quantizer
from basicsr_quant.quant.split_quantizer import SplitQuantizer

NARROW = 4
"""Widest codes that are stored two to a byte."""


def check_grid(quantizer: Quantizer, name: str) -> None:
    """Verify that a quantizer can be written in ONNX.

    Raises:
        UserError: QuantizeLinear cannot round as its grid does.
    """
    if not isinstance(quantizer.grid, FloatOffsetGrid | SymmetricStepGrid):
        raise UserError(f"'{name}' is rounded on the grid {quantizer.recipe.grid.type}, which ONNX's QuantizeLinear "
                        "cannot do (it rounds halves to even and knows one offset); quantize with float_offset")
    if bool((quantizer.lower_bound >= quantizer.upper_bound).any()):
        raise UserError(f"the bounds of '{name}' are equal or crossed, which has no step; leave it out by 'none'")


def add_rounding(graph: Graph, name: str, quantizer: Quantizer, x: Value) -> Value:
    """Add the nodes that round an activation, and note where they are.

    Args:
        graph: To which they are added.
        name: Of the quantizer.
        quantizer: With one pair of bounds.
        x: Any shape.

    Raises:
        UserError: It has several pairs of bounds.
    """
    if quantizer.lower_bound.numel() != 1:
        raise UserError(f"'{name}' rounds an activation with bounds per channel, which is not exported; use "
                        "'per: tensor'")
    begin = len(graph.nodes)
    lower, upper = (bound.detach().float().reshape(()) for bound in (quantizer.lower_bound, quantizer.upper_bound))
    if isinstance(quantizer.grid, FloatOffsetGrid):
        clipped = graph.add("Clip", x.name, graph.constant(lower, f"{name}.lower"),
                            graph.constant(upper, f"{name}.upper"), name=f"{name}.clipped")
        shifted = graph.add("Sub", clipped, graph.constant(lower), name=f"{name}.shifted")
        step = graph.constant((upper - lower) / (2**quantizer.bits - 1), f"{name}.step")
        rounded = _there_and_back(graph, name, shifted, step, 0)
        rounded = graph.add("Add", rounded, graph.constant(lower), name=f"{name}.rounded")
    else:
        number, negatives = step_and_negatives(lower, upper, quantizer.bits)
        highest = 2**quantizer.bits - 1 - negatives
        clipped = graph.add("Clip", x.name, graph.constant(-negatives * number, f"{name}.lower"),
                            graph.constant(highest * number, f"{name}.upper"), name=f"{name}.clipped")
        rounded = _there_and_back(graph, name, clipped, graph.constant(number, f"{name}.step"), int(negatives))
    result = Value(rounded, x.shape, x.dtype)
    graph.roundings.append(Rounding(name, x, result, (begin, len(graph.nodes))))
    return result


def _there_and_back(graph: Graph, name: str, x: str, step: str, zero_point: int) -> str:
    zero = graph.number(zero_point, torch.uint8)
    codes = graph.add("QuantizeLinear", x, step, zero, name=f"{name}.codes")
    return graph.add("DequantizeLinear", codes, step, zero, name=f"{name}.decoded")


def add_codes(graph: Graph, name: str, quantizer: Quantizer | SplitQuantizer, codes: torch.Tensor) -> str:
    """Add a tensor that is stored as codes; return the name of its values.

    DequantizeLinear never meets a matrix product directly: onnxruntime would then round the other operand to 8 bits.

    Args:
        graph: To which it is added.
        name: Of the tensor.
        quantizer: Of the tensor, in one piece or two.
        codes: uint8.
    """
    if isinstance(quantizer, SplitQuantizer):
        pieces = [add_codes(graph, f"{name}.{number}", part, piece) for number, (part, piece)
                  in enumerate(zip(quantizer.quantizers(), quantizer.cut(codes), strict=True))]
        return graph.add("Concat", *pieces, axis=quantizer.axis, name=name)
    lower, upper = quantizer.lower_bound.detach().float(), quantizer.upper_bound.detach().float()
    kind = graph.onnx.TensorProto.UINT4 if quantizer.bits <= NARROW else graph.onnx.TensorProto.UINT8
    inputs = [graph.constant(codes, f"{name}.codes", kind)]
    per_channel = lower.numel() > 1
    attributes = {"axis": 0} if per_channel else {}

    def shaped(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.reshape(-1) if per_channel else numbers.reshape(())

    if isinstance(quantizer.grid, FloatOffsetGrid):
        inputs.append(graph.constant(shaped((upper - lower) / (2**quantizer.bits - 1)), f"{name}.step"))
        decoded = graph.add("DequantizeLinear", *inputs, name=f"{name}.decoded", **attributes)
        return graph.add("Add", decoded, graph.constant(lower, f"{name}.lower"), name=name)
    step, negatives = step_and_negatives(lower, upper, quantizer.bits)
    inputs += [graph.number(1.0), graph.constant(shaped(negatives).to(torch.uint8), f"{name}.zero_point", kind)]
    if per_channel:
        inputs[1] = graph.constant(torch.ones_like(shaped(step)), f"{name}.ones")
    whole = graph.add("DequantizeLinear", *inputs, name=f"{name}.whole", **attributes)
    return graph.add("Mul", whole, graph.constant(step, f"{name}.step"), name=name)
