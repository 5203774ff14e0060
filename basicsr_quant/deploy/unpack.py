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
from basicsr_quant.deploy.unfilled import Unfilled
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import first_not_finite
from basicsr_quant.models.base import RestorationModel
from basicsr_quant.options.effective import flat, plain
from basicsr_quant.options.types import Options
from basicsr_quant.quant.calibrate import check_bounds, named_quantizers
from basicsr_quant.quant.layers.weighted import weighted_layers
from basicsr_quant.registry import MODELS

LARGEST_NUMBER = 2**14
DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Name -> dtype of what is not quantized; None = as it is."""


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
    if not _are_facts(facts):
        raise UserError(f"'{path}' lacks the facts that a packed model has; pack it again")
    options = restored_options(facts["options"], str(path))
    network = fitted(skeleton(options, str(path)), facts, str(path))
    fill(network, content, str(path))
    return Packed(options, network, facts)


def _are_facts(facts: Any) -> bool:
    kinds = {"options": dict, "folded": list, "bits": dict, "rest": str}
    return (isinstance(facts, dict) and all(isinstance(facts.get(key), kind) for key, kind in kinds.items())
            and all(isinstance(name, str) for name in facts["folded"]) and facts["rest"] in DTYPES)


def skeleton(options: Options, source: str) -> nn.Module:
    """Build the network that options describe, prepared and without values.

    Raises:
        UserError: It cannot be built; ``source`` names the file.
    """
    network_class = MODELS.get(options.model_type)
    _check_networks(options, source)
    try:
        with Unfilled():
            network: nn.Module = network_class.skeleton(options)
    except UserError:
        raise
    except Exception as error:  # whatever a network's constructor does with numbers that make no sense
        raise UserError(f"'{source}' describes a network that cannot be built ({' '.join(str(error).split())[:80]}); "
                        "pack it again") from error
    return network


def _check_networks(options: Options, source: str) -> None:
    """Verify that networks name no files, and no number so large that building them would never end."""
    for key, value in flat(plain(options)).items():
        numbers = value if isinstance(value, list) else [value]
        large = any(isinstance(number, int) and number > LARGEST_NUMBER for number in numbers)
        if key.startswith("network_") and (large or value == "spandrel"):
            raise UserError(f"'{source}' describes a network that cannot be built ({key} is {str(value)[:40]}); "
                            "pack it again")


def fitted(network: nn.Module, facts: Mapping[str, Any], source: str) -> nn.Module:
    """Make a :func:`skeleton` the frozen network of a packed file, without its values.

    Raises:
        UserError: The facts do not fit it; ``source`` names the file.
    """
    quantizers, layers = dict(named_quantizers(network)), dict(weighted_layers(network))
    for name, bits in facts["bits"].items():
        if name not in quantizers or type(bits) is not int or not 1 <= bits <= 8:
            raise UserError(f"'{source}' gives '{name}' {bits} bits, which does not fit its options; pack it again")
    for name in facts["folded"]:
        if name not in layers or layers[name].let is None:
            raise UserError(f"'{source}' names '{name}' as a layer with a folded transformation, which its options do "
                            "not have; pack it again")
    return shell(network, facts["folded"], facts["bits"])


def fill(network: nn.Module, content: Content, source: str) -> None:
    """Give a :func:`fitted` network its values.

    Raises:
        UserError: The content does not fit, or is not finite; ``source`` names the file.
    """
    try:
        from_tensors(network, content.tensors)
    except (ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"'{source}' does not fit its own options: {error}; pack it again") from error
    check_bounds(network, f"'{source}'", allow_degenerate=True)
    name = first_not_finite(content.tensors.items())
    if name is not None:
        raise UserError(f"'{source}': tensor '{name}' holds NaN or infinite values; pack it again")


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
