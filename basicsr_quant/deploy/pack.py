"""Packing: a model as one small file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from basicsr_quant.deploy.container import Content, to_bytes
from basicsr_quant.deploy.freeze import folded_layers, freeze, rest_parameters
from basicsr_quant.deploy.options import restored_options, stored_options
from basicsr_quant.deploy.streams import CODES, SCALES, ZEROS, scales, streams, to_tensors
from basicsr_quant.deploy.unpack import DTYPES, fill, fitted, skeleton
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import first_not_finite
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.quant.calibrate import named_quantizers

SOURCE = "the packed file"


@dataclass(frozen=True)
class Sizes:
    """Bytes of a packed file by what they hold.

    Attributes:
        codes: Bit streams of weights, biases and signs.
        scales: Bounds, and scales of binary weights.
        rest: Parameters in floating point, and buffers that no rule gives.
        header: Names, options and digest.
    """

    codes: int
    scales: int
    rest: int
    header: int

    @property
    def total(self) -> int:
        """The whole file."""
        return self.codes + self.scales + self.rest + self.header


def pack(model: RestorationModel, rest: str = "fp32", source: str | None = None) -> tuple[bytes, Sizes]:
    """Return a model as the bytes of a packed file, and their sizes.

    The network is then built anew from what the file says about it, and filled with what it holds, as
    :func:`basicsr_quant.deploy.unpack.unpack` does; a model that cannot be rebuilt is not packed.

    Args:
        model: Ready to test; its network is frozen in place.
        rest: Dtype of what is not quantized: ``fp32`` (as it is), ``fp16`` or ``bf16``.
        source: SHA-256 of the file that the weights came from.

    Raises:
        UserError: The options do not say how to build the network, or a weight does not fit into ``rest``.
    """
    options = stored_options(model)
    facts: dict[str, Any] = {
        "options": options, "folded": folded_layers(model.network), "rest": rest, "source": source,
        "versions": _versions()}
    fresh = skeleton(restored_options(options, SOURCE), SOURCE)
    planned = {name: quantizer.bits for name, quantizer in named_quantizers(fresh)}
    facts["bits"] = {name: quantizer.bits for name, quantizer in named_quantizers(model.network)
                     if planned.get(name, quantizer.bits) != quantizer.bits}
    return _packed(freeze(model.network), fitted(fresh, facts, SOURCE), facts)


def pack_frozen(network: nn.Module, facts: Mapping[str, Any]) -> tuple[bytes, Sizes]:
    """Return a frozen network as the bytes of a packed file, and their sizes.

    Args:
        network: Frozen; one that was unpacked gives the same bytes again.
        facts: See :class:`basicsr_quant.deploy.unpack.Packed`.

    Raises:
        UserError: The two differ in structure, or a weight does not fit into the dtype of the rest.
    """
    fresh = skeleton(restored_options(facts["options"], SOURCE), SOURCE)
    return _packed(network, fitted(fresh, facts, SOURCE), facts)


def _packed(network: nn.Module, fresh: nn.Module, facts: Mapping[str, Any]) -> tuple[bytes, Sizes]:
    difference = next((pair for pair in zip(_outline(network), _outline(fresh), strict=False) if pair[0] != pair[1]),
                      None)
    if difference is not None or len(_outline(network)) != len(_outline(fresh)):
        where = f", first at {difference[0][0]}" if difference else ""
        raise UserError(f"the options do not say how to build this network{where}; name its configuration in the "
                        "network_* blocks")
    tensors = to_tensors(network, fresh, DTYPES[facts["rest"]])
    overflown = first_not_finite(tensors.items())
    if overflown is not None:
        raise UserError(f"'{overflown}' holds values that {facts['rest']} cannot hold; pack with --rest fp32 or bf16")
    content = Content(facts, tensors)
    data = to_bytes(content)
    fill(fresh, content, SOURCE)
    size = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    codes, numbers = size.get(CODES, 0), size.get(SCALES, 0) + size.get(ZEROS, 0)
    return data, Sizes(codes, numbers, sum(size.values()) - codes - numbers, len(data) - sum(size.values()))


def _outline(network: nn.Module) -> list[tuple[str, Any]]:
    """Return everything that the order of a file depends on."""
    coded = [(f"{type(stream.module).__name__}.{stream.attribute}", (stream.bits, *stream.tensor.shape))
             for stream in streams(network)]
    return [*((name, tuple(value.shape)) for name, value in rest_parameters(network).items()), *coded,
            *((f"bound {number}", tuple(scale.shape)) for number, scale in enumerate(scales(network)))]


def _versions() -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    try:
        found["basicsr_quant"] = importlib.metadata.version("basicsr_quant")
    except importlib.metadata.PackageNotFoundError:
        found["basicsr_quant"] = "not installed"
    return found
