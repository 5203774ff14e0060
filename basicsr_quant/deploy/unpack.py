"""Unpacking: the frozen network of a packed file, and a model that restores images with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr_quant.deploy.container import Content, read
from basicsr_quant.deploy.freeze import shell
from basicsr_quant.deploy.options import changed, restored_options
from basicsr_quant.deploy.streams import from_tensors
from basicsr_quant.errors import UserError
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.types import Options
from basicsr_quant.quant.calibrate import check_bounds, named_quantizers
from basicsr_quant.quant.layers.weighted import weighted_layers
from basicsr_quant.registry import MODELS


@dataclass(frozen=True)
class Packed:
    """A packed model in memory.

    Attributes:
        options: Without data sets and files.
        network: Frozen; it computes what the simulation computes.
        facts: ``options`` as plain types, ``folded`` (layers whose transformation a norm does), ``bits`` (name of a
            quantizer -> width that the plan does not give), ``rest`` (dtype of what is not quantized), ``source``
            (SHA-256 of the full-precision or simulated checkpoint), ``versions``.
    """

    options: Options
    network: nn.Module
    facts: Mapping[str, Any]


def unpack(path: str | Path) -> Packed:
    """Read a packed file.

    Raises:
        UserError: It is damaged, of another version, or names what this program does not have or know.
    """
    content = read(path)
    facts = content.facts
    wanted = {"options": dict, "folded": list, "bits": dict, "rest": str}
    if not isinstance(facts, dict) or not all(isinstance(facts.get(key), kind) for key, kind in wanted.items()):
        raise UserError(f"'{path}' lacks the facts that a packed model has; pack it again")
    options = restored_options(facts["options"], str(path))
    network = empty_network(options, facts, str(path))
    _fill(network, content, str(path))
    check_bounds(network, f"'{path}'", allow_degenerate=True)
    return Packed(options, network, facts)


def empty_network(options: Options, facts: Mapping[str, Any], source: str) -> nn.Module:
    """Build the frozen network of a packed file, without its values.

    Raises:
        UserError: The facts do not fit the options; ``source`` names the file.
    """
    try:
        network: nn.Module = MODELS.get(options.model_type).skeleton(options)
    except (RuntimeError, ValueError, TypeError, AssertionError, ZeroDivisionError) as error:
        raise UserError(f"'{source}' describes a network that cannot be built ({' '.join(str(error).split())[:80]}); "
                        "pack it again") from error
    quantizers, layers = dict(named_quantizers(network)), dict(weighted_layers(network))
    for name, bits in facts["bits"].items():
        if name not in quantizers or not isinstance(bits, int) or not 1 <= bits <= 8:
            raise UserError(f"'{source}' gives '{name}' {bits} bits, which does not fit its options; pack it again")
    for name in facts["folded"]:
        if name not in layers or layers[name].let is None:
            raise UserError(f"'{source}' names '{name}' as a layer with a folded transformation, which its options do "
                            "not have; pack it again")
    return shell(network, facts["folded"], facts["bits"])


def _fill(network: nn.Module, content: Content, source: str) -> None:
    try:
        from_tensors(network, content.tensors)
    except (ValueError, IndexError) as error:
        raise UserError(f"'{source}' does not fit its own options: {error}; pack it again") from error


def open_model(path: str | Path, device: torch.device, seed: int | None = None,
               tile: int | None = None) -> tuple[RestorationModel, Packed]:
    """Return a model that restores images with the network of a packed file.

    Args:
        path: Packed file.
        device: Where to restore.
        seed: In place of the stored ``manual_seed``.
        tile: In place of the stored ``val:tile``, in LR pixels.

    Raises:
        UserError: See :func:`unpack`.
    """
    packed = unpack(path)
    options = changed(packed.options, seed, tile)
    model: RestorationModel = MODELS.build(options.model_type, options, device)
    model.adopt(packed.network.to(device))
    return model, packed
