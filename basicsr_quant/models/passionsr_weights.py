"""PassionSR's weight files: what they hold beside the full-precision weights, and how it gets into a network."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from basicsr_quant.archs.published.passionsr import Component
from basicsr_quant.archs.published.passionsr_state import PREFIX, export_passionsr, import_passionsr
from basicsr_quant.errors import UserError
from basicsr_quant.io.weights import apply_state_dict
from basicsr_quant.quant.changed_weights import changed_weights, install_changes
from basicsr_quant.quant.layers.weighted import weighted_layers

NORM_TOLERANCE = 1e-3
_QUANTIZED = re.compile(r"\.(?:let|processor|parametrization|\w+_quantizer)\.")


def load_published(network: nn.Module, component: Component, state: Mapping[str, Tensor], where: str) -> None:
    """Put a published file's transformations and bounds into a prepared network that has its full-precision weights.

    The plan must be that of the file: its bit-width (not in the file), its splits, ``offset_sign: plus``, and the
    smoothing per key token.

    Args:
        network: Prepared network with the weights of Stable Diffusion 2.1 and OSEDiff merged.
        component: Which network.
        state: Content of the file.
        where: Names the file in messages.

    Raises:
        UserError: Names or shapes disagree, or the norms in the file are not those of the network.
    """
    quantized, norms = import_passionsr(component, state, where)
    own = network.state_dict()
    for name, norm in norms.items():
        if name not in own or own[name].shape != norm.shape:
            raise UserError(f"{where}: its norm '{name}' does not fit this network; check which file it is")
        difference = (norm.to(own[name]) - own[name]).abs().amax()
        if own[name].device.type != "meta" and difference > NORM_TOLERANCE * own[name].abs().amax().clamp_min(1e-3):
            raise UserError(f"{where}: its norm '{name}' differs from that of the full-precision weights; check "
                            "path:sd and path:osediff")
    plain = {name: tensor for name, tensor in own.items() if not _QUANTIZED.search(name)}
    with torch.no_grad():
        apply_state_dict(network, {**plain, **quantized}, where)


def quantization_state(network: nn.Module, component: Component) -> dict[str, Tensor]:
    """Return transformations, bounds and what else the quantization has, on the CPU, without the weights under it.

    Of the weights only those are in it that learning changed, and what is being learned of them. The names are the
    published ones if the published form can hold the network: all layers quantized and transformed, modules where
    Stable Diffusion has them. Otherwise they are those of ``network``.

    Args:
        network: Prepared network.
        component: Which network.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    changed = changed_weights(network)
    own = {name: tensor for name, tensor in state.items() if _QUANTIZED.search(name) or name in changed}
    if any(isinstance(module, (nn.Conv2d, nn.Linear)) for module in network.modules()) or any(
            layer.let is None for _, layer in weighted_layers(network)):
        return own
    try:
        published = export_passionsr(component, state)
        found, _ = import_passionsr(component, published, "export")
    except UserError:
        return own
    return published if found.keys() == own.keys() else own


def load_quantization(network: nn.Module, component: Component, state: Mapping[str, Tensor], where: str) -> None:
    """Put what :func:`quantization_state` returned, or a released file, into a prepared network with its weights.

    Raises:
        UserError: Names or shapes disagree.
    """
    if any(name.startswith(PREFIX) for name in state):
        load_published(network, component, state, where)
        return
    try:
        install_changes(network, state)
    except ValueError as error:
        raise UserError(f"{where}: {error}; check which file it is") from error
    plain = {name: tensor for name, tensor in network.state_dict().items() if not _QUANTIZED.search(name)}
    with torch.no_grad():
        apply_state_dict(network, {**plain, **state}, where)
