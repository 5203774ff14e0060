"""Operators that compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from basicsr_quant.deploy.onnx.graph import Graph
from basicsr_quant.deploy.onnx.table import Handler, Operand, handles, pair

POINTWISE = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "sqrt": "Sqrt", "abs": "Abs",
             "neg": "Neg", "reciprocal": "Reciprocal", "erf": "Erf", "round": "Round", "floor": "Floor"}
ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}
REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}


def _arithmetic(operator: str) -> Handler:
    def handler(graph: Graph, out: Any, x: Operand | float, y: Operand | float, alpha: float = 1) -> str:
        right = graph.name_of(y, out.dtype)
        if alpha != 1:
            right = graph.add("Mul", right, graph.number(alpha, out.dtype))
        return graph.add(operator, graph.name_of(x, out.dtype), right)

    return handler


def _pointwise(operator: str) -> Handler:
    return lambda graph, out, x: graph.add(operator, graph.name_of(x))


for _name, _operator in ARITHMETIC.items():
    handles(_name)(_arithmetic(_operator))
for _name, _operator in POINTWISE.items():
    handles(_name)(_pointwise(_operator))


@handles("rsub")
def _rsub(graph: Graph, out: Any, x: Operand, y: Operand | float) -> str:
    return graph.add("Sub", graph.name_of(y, out.dtype), graph.name_of(x))


@handles("pow")
def _pow(graph: Graph, out: Any, x: Operand, exponent: Operand | float) -> str:
    return graph.add("Pow", graph.name_of(x), graph.name_of(exponent, out.dtype))


@handles("rsqrt")
def _rsqrt(graph: Graph, out: Any, x: Operand) -> str:
    return graph.add("Reciprocal", graph.add("Sqrt", graph.name_of(x)))


@handles("clamp", "clamp_min", "clamp_max", "hardtanh")
def _clamp(graph: Graph, out: Any, x: Operand, low: float | None = None, high: float | None = None, *, min: Any = None,
           max: Any = None) -> str:
    bounds = [low if low is not None else min, high if high is not None else max]
    return graph.add("Clip", graph.name_of(x), *("" if bound is None else graph.name_of(bound) for bound in bounds))


@handles("relu6")
def _relu6(graph: Graph, out: Any, x: Operand) -> str:
    return _clamp(graph, out, x, 0.0, 6.0)


@handles("leaky_relu")
def _leaky_relu(graph: Graph, out: Any, x: Operand, slope: float = 0.01) -> str:
    return graph.add("LeakyRelu", graph.name_of(x), alpha=float(slope))


@handles("prelu")
def _prelu(graph: Graph, out: Any, x: Operand, slope: torch.Tensor) -> str:
    shaped = slope.detach().reshape(-1, *[1] * (len(x.shape) - 2))
    return graph.add("PRelu", graph.name_of(x), graph.constant(shaped, "slope"))


@handles("silu")
def _silu(graph: Graph, out: Any, x: Operand) -> str:
    name = graph.name_of(x)
    return graph.add("Mul", name, graph.add("Sigmoid", name))


@handles("gelu")
def _gelu(graph: Graph, out: Any, x: Operand, approximate: str = "none") -> str:
    return graph.add("Gelu", graph.name_of(x), approximate=approximate)


@handles("softmax")
def _softmax(graph: Graph, out: Any, x: Operand, dim: int, dtype: torch.dtype | None = None) -> str:
    return graph.add("Softmax", graph.name_of(x), axis=dim)


@handles("matmul", "bmm", "mm")
def _matmul(graph: Graph, out: Any, x: Operand, y: Operand) -> str:
    return graph.add("MatMul", graph.name_of(x), graph.name_of(y))


@handles("linear")
def _linear(graph: Graph, out: Any, x: Operand, weight: Operand, bias: Operand | None = None) -> str:
    turned = graph.add("Transpose", graph.name_of(weight), perm=[1, 0])
    y = graph.add("MatMul", graph.name_of(x), turned)
    return y if bias is None else graph.add("Add", y, graph.name_of(bias))


@handles("conv2d")
def _conv2d(graph: Graph, out: Any, x: Operand, weight: Operand, bias: Operand | None = None,
            stride: Sequence[int] = (1,), padding: str | Sequence[int] = (0,), dilation: Sequence[int] = (1,),
            groups: int = 1) -> str:
    spread = pair(dilation)
    if isinstance(padding, str):
        totals = [step * (side - 1) if padding == "same" else 0
                  for step, side in zip(spread, weight.shape[2:], strict=True)]
        pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]
    else:
        pads = pair(padding) * 2
    names = [graph.name_of(operand) for operand in (x, weight, bias) if operand is not None]
    return graph.add("Conv", *names, strides=pair(stride), pads=pads, dilations=spread, group=groups)


@handles("layer_norm")
def _layer_norm(graph: Graph, out: Any, x: Operand, shape: Sequence[int], weight: Operand | None = None,
                bias: Operand | None = None, eps: float = 1e-5, *rest: Any) -> str:
    scale = graph.constant(torch.ones(*shape), "ones") if weight is None else graph.name_of(weight)
    names = [graph.name_of(x), scale] + ([] if bias is None else [graph.name_of(bias)])
    return graph.add("LayerNormalization", *names, axis=-len(shape), epsilon=eps)


@handles("batch_norm")
def _batch_norm(graph: Graph, out: Any, x: Operand, weight: Any, bias: Any, mean: torch.Tensor, variance: torch.Tensor,
                training: bool, momentum: float, eps: float, *rest: Any) -> str:
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    names = [graph.name_of(operand) for operand in (x, weight, bias, mean, variance)]
    return graph.add("BatchNormalization", *names, epsilon=eps)


def _reduction(operator: str) -> Handler:
    def handler(graph: Graph, out: Any, x: Operand, dims: Sequence[int] | None = None, keepdim: bool = False,
                **keywords: Any) -> str:
        axes = graph.integers(*(dims or range(len(x.shape))))
        return graph.add(operator, graph.name_of(x), axes, keepdims=int(keepdim))

    return handler


for _name, _operator in REDUCTIONS.items():
    handles(_name)(_reduction(_operator))


@handles("var")
def _var(graph: Graph, out: Any, x: Operand, dims: Sequence[int], unbiased: bool = True, keepdim: bool = False) -> str:
    name, count = graph.name_of(x), math.prod(x.shape[dim] for dim in dims)
    mean = graph.add("ReduceMean", name, graph.integers(*dims), keepdims=1)
    centred = graph.add("Sub", name, mean)
    squares = graph.add("ReduceSum", graph.add("Mul", centred, centred), graph.integers(*dims), keepdims=int(keepdim))
    return graph.add("Div", squares, graph.number(float(count - unbiased)))


@handles("linalg_vector_norm")
def _norm(graph: Graph, out: Any, x: Operand, order: float, dims: Sequence[int], keepdim: bool = False,
          **keywords: Any) -> str:
    operator = {1: "ReduceL1", 2: "ReduceL2"}[int(order)]
    return graph.add(operator, graph.name_of(x), graph.integers(*dims), keepdims=int(keepdim))


@handles("upsample_nearest2d")
def _nearest(graph: Graph, out: Any, x: Operand, *rest: Any) -> str:
    return graph.add("Resize", graph.name_of(x), "", "", graph.integers(*out.shape), mode="nearest",
                     coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@handles("upsample_bilinear2d")
def _bilinear(graph: Graph, out: Any, x: Operand, size: Any, align_corners: bool, *rest: Any) -> str:
    return graph.add("Resize", graph.name_of(x), "", "", graph.integers(*out.shape), mode="linear",
                     coordinate_transformation_mode="align_corners" if align_corners else "half_pixel")


@handles("adaptive_avg_pool2d")
def _adaptive_average(graph: Graph, out: Any, x: Operand, size: Any) -> str:
    if tuple(out.shape[2:]) != (1, 1):
        raise NotImplementedError("adaptive_avg_pool2d to more than one pixel")
    return graph.add("GlobalAveragePool", graph.name_of(x))


@handles("max_pool2d")
def _max_pool(graph: Graph, out: Any, x: Operand, kernel: Sequence[int], stride: Sequence[int] = (),
              padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,), ceil_mode: bool = False) -> str:
    return graph.add("MaxPool", graph.name_of(x), kernel_shape=pair(kernel), strides=pair(stride or kernel),
                     pads=pair(padding) * 2, dilations=pair(dilation), ceil_mode=int(ceil_mode))


@handles("avg_pool2d")
def _average_pool(graph: Graph, out: Any, x: Operand, kernel: Sequence[int], stride: Sequence[int] = (),
                  padding: Sequence[int] = (0,), ceil_mode: bool = False, count_include_pad: bool = True,
                  *rest: Any) -> str:
    return graph.add("AveragePool", graph.name_of(x), kernel_shape=pair(kernel), strides=pair(stride or kernel),
                     pads=pair(padding) * 2, ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad))
