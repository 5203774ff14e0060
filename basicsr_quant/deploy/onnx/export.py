"""Frozen networks as ONNX files that were checked before they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from basicsr_quant.deploy.onnx.check import Agreement, compare, drift_of, record
from basicsr_quant.deploy.onnx.marking import Padded, mark
from basicsr_quant.deploy.onnx.packages import onnx_package
from basicsr_quant.deploy.onnx.trace import graph_of

CHECKED_IMAGES = 2


def export(network: nn.Module, scale: int, shape: tuple[int, int, int, int],
           facts: Mapping[str, str] | None = None) -> tuple[bytes, Agreement]:
    """Return a frozen network as an ONNX model for one input shape, checked in onnxruntime on random images.

    Weights that have codes stay codes: two to a byte up to 4 bits, else one. Activations are rounded by
    QuantizeLinear, on the offset grid between Sub and Add. The shape is fixed: a session refuses any other.

    Args:
        network: Frozen, in float32 on the CPU; it is taken apart.
        scale: Factor of the network.
        shape: Of the input, (B, 3, H, W).
        facts: Metadata.

    Returns:
        The model's bytes, and how well it agrees with the network.

    Raises:
        UserError: A package is missing, the network has binary layers or a grid or an operator that ONNX lacks, or the
            graph disagrees with the network.
    """
    for package in ("onnx", "onnxruntime"):
        onnx_package(package)
    generator = torch.Generator().manual_seed(0)
    padded = Padded(network, scale).eval()
    recordings = [record(padded, torch.rand(shape, generator=generator)) for _ in range(CHECKED_IMAGES)]
    graph, entry, output = graph_of(padded, recordings[0].image, mark(network))
    agreement = compare(graph, entry, output, recordings)
    data = graph.model(graph.nodes, [entry], [output], facts)
    return data, replace(agreement, drift=drift_of(data, entry, output, recordings))
