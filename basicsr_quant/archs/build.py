"""From the ``type`` and the arguments of a ``network_*`` block to a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from basicsr_quant.archs.external import basicsr_network
from basicsr_quant.errors import UserError
from basicsr_quant.registry import ARCHS, nearest

BASICSR_PREFIX = "basicsr:"


def network_class(component_type: str) -> Callable[..., nn.Module]:
    """Return what builds a network: an entry of ARCHS, or ``basicsr:NAME`` for basicsr's own.

    Raises:
        UserError: The name is unknown.
    """
    if component_type.startswith(BASICSR_PREFIX):
        return basicsr_network(component_type.removeprefix(BASICSR_PREFIX))
    found: Callable[..., nn.Module] = ARCHS.get(component_type)
    return found


def build_network(component_type: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network with the arguments of its option block.

    Args:
        component_type: Name in ARCHS, or ``basicsr:NAME``.
        arguments: Keyword arguments of the network.

    Returns:
        The module. Basicsr's window networks do not pad; they get ``window_multiple``.

    Raises:
        UserError: The name or an argument is unknown, or a required argument is missing.
    """
    build = network_class(component_type)
    signature = inspect.signature(build)
    parameters = signature.parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise UserError(f"network '{component_type}' has no option '{key}'{nearest(key, list(parameters))}; "
                                f"known: {', '.join(parameters)}")
    try:
        bound = signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"network '{component_type}': {error}; add it to the options") from error
    network = build(**arguments)
    bound.apply_defaults()
    window = bound.arguments.get("window_size")
    if component_type.startswith(BASICSR_PREFIX) and isinstance(window, int):
        network.window_multiple = window  # type: ignore[assignment]
    return network
