"""A network in other runtimes, if they are installed: the best that full precision can do here."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

logger = logging.getLogger("basicsr_quant")

ONNXRUNTIME, OPENVINO, OPENVINO_BF16 = "fp32, onnxruntime", "fp32, OpenVINO", "bf16, OpenVINO"
OPSET = 17
LARGEST_MODEL = 2**31 - 2**20
"""Bytes that an ONNX model can hold."""
Work = Callable[[], torch.Tensor]


def exported_forms(network: nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, Work]:
    """Return name -> a call of the network in a runtime, with as many threads as torch has.

    Args:
        network: On the CPU, in float32.
        inputs: Of the network, of the size that all calls have.
    """
    found = {name: importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime", "openvino")}
    if not found["onnx"] or not (found["onnxruntime"] or found["openvino"]):
        return {}
    if sum(value.numel() * value.element_size() for value in network.parameters()) > LARGEST_MODEL:
        logger.info("the network is too large for an ONNX file; other runtimes are left out")
        return {}
    try:
        model = _onnx(network, inputs)
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        logger.info("the network has no ONNX form (%s); other runtimes are left out", str(error).splitlines()[0][:80])
        return {}
    forms: dict[str, Work] = {}
    if found["onnxruntime"]:
        forms[ONNXRUNTIME] = _onnxruntime(model, inputs)
    if found["openvino"]:
        forms[OPENVINO] = _openvino(model, inputs, "f32")
        forms[OPENVINO_BF16] = _openvino(model, inputs, "bf16")
    return forms


def _onnx(network: nn.Module, inputs: Sequence[torch.Tensor]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, tuple(inputs), file,  # type: ignore[arg-type]
                          dynamo=False, opset_version=OPSET)
    return file.getvalue()


def _onnxruntime(model: bytes, inputs: Sequence[torch.Tensor]) -> Work:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    fed = dict(zip(names, (x.numpy() for x in inputs), strict=True))
    return lambda: torch.from_numpy(session.run(None, fed)[0])


def _openvino(model: bytes, inputs: Sequence[torch.Tensor], precision: str) -> Work:
    import openvino

    core: Any = openvino.Core()
    request = core.compile_model(core.read_model(model, b""), "CPU", {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": "1",
    }).create_infer_request()
    fed = [x.contiguous().numpy() for x in inputs]
    return lambda: torch.from_numpy(request.infer(fed)[0].copy())
