"""Which networks have published names of their own, and how states cross that border.

A network without an entry is saved under its own names. Quantized states always carry ``<quantizer>.n_bit``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from basicsr_quant.archs.published import bi_diffsr, swinir
from basicsr_quant.options.component import Component

StateDict = dict[str, torch.Tensor]
BITS_SUFFIX = ".n_bit"
_IMPORTERS: dict[str, Callable[[StateDict], StateDict]] = {
    "SwinIR": swinir.import_swinir, "BIDiffSRUNet": bi_diffsr.import_bi_diffsr,
}


def importer(component: Component) -> Callable[[StateDict], StateDict]:
    """Return the function from published full-precision names to ours."""
    return _IMPORTERS.get(component.type, _same)


def exporter(component: Component) -> Callable[[StateDict], StateDict]:
    """Return the function from our full-precision names to published ones."""
    if component.type == "SwinIR":
        return partial(swinir.export_swinir, network_options=component.arguments)
    return bi_diffsr.export_bi_diffsr if component.type == "BIDiffSRUNet" else _same


def quantized_importer(component: Component) -> Callable[[StateDict], tuple[StateDict, dict[str, int]]]:
    """Return the function from a published quantized state to (our state, quantizer name -> bits)."""
    return swinir.import_2dquant if component.type == "SwinIR" else _split_bits


def quantized_exporter(component: Component) -> Callable[[StateDict, dict[str, int]], StateDict]:
    """Return the function from (our quantized state, quantizer name -> bits) to a published quantized state."""
    if component.type == "SwinIR":
        return partial(swinir.export_2dquant, network_options=component.arguments)
    return _join_bits


def _same(state: StateDict) -> StateDict:
    return state


def _split_bits(state: StateDict) -> tuple[StateDict, dict[str, int]]:
    bits = {name.removesuffix(BITS_SUFFIX): round(float(value))
            for name, value in state.items() if name.endswith(BITS_SUFFIX)}
    return {name: value for name, value in state.items() if not name.endswith(BITS_SUFFIX)}, bits


def _join_bits(state: StateDict, bits: dict[str, int]) -> StateDict:
    return {**state, **{name + BITS_SUFFIX: torch.tensor([float(width)]) for name, width in bits.items()}}
