"""Arguments of a component against the signature of the class (or function) that its type names."""

from __future__ import annotations

import inspect
import typing
from typing import Any

import msgspec

from basicsr_quant.options.annotations import writable
from basicsr_quant.options.problems import Problems, leaf
from basicsr_quant.options.source import KeyPath, joined
from basicsr_quant.registry import Registry


def checked_arguments(problems: Problems, registry: Registry, name: str, arguments: dict[str, Any], path: KeyPath,
                      supplied: tuple[str, ...] = (), complete: bool = False) -> dict[str, Any]:
    """Return the arguments of a block, converted by the annotations of what ``name`` stands for.

    Args:
        problems: Makes the errors.
        registry: Table of the block's kind.
        name: The block's ``type``.
        arguments: Its other keys.
        path: Key path of the block.
        supplied: Parameters that the framework supplies, which a file may not set.
        complete: Whether every parameter without default must be given.

    Raises:
        UserError: An argument is unknown, missing or of the wrong type.
    """
    try:
        target = registry.get(name)
    except ImportError:
        return arguments
    parameters = inspect.signature(target).parameters
    annotations = _annotations(target)
    known = {key: writable(annotations.get(key, Any)) for key, parameter in parameters.items()
             if key not in supplied and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)}
    known = {key: annotation for key, annotation in known.items() if annotation is not None}
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    converted = {}
    for key, value in arguments.items():
        if key in known:
            converted[key] = _argument(problems, known[key], value, (*path, key))
        elif is_open and key not in parameters:
            converted[key] = value
        else:
            raise problems.unknown((*path, key), list(known))
    for key in known:
        if complete and key not in arguments and parameters[key].default is inspect.Parameter.empty:
            raise problems.error(path, f"missing key '{joined((*path, key))}', which {registry.kind} '{name}' needs")
    return converted


def _annotations(target: Any) -> dict[str, Any]:
    """Return resolved annotations; none where they cannot be resolved."""
    try:
        return typing.get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}


def _argument(problems: Problems, annotation: Any, value: Any, path: KeyPath) -> Any:
    try:
        return leaf(value, annotation)
    except msgspec.ValidationError as error:
        raise problems.wrong(path, annotation, value) from error
    except TypeError:
        return value
