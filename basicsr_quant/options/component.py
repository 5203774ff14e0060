"""A block of an option file that names a class and its arguments."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from basicsr_quant.errors import UserError
from basicsr_quant.registry import Registry


class Component(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``{type: NAME, key: value, ...}`` says.

    Args:
        type: Name in the registry of the block's kind.
        arguments: The other keys, checked against the signature of what the name stands for.
    """

    type: str
    arguments: dict[str, Any] = {}

    def build(self, registry: Registry, /, **extra: Any) -> Any:
        """Call what ``type`` stands for in ``registry`` with the block's arguments and what the framework adds.

        Args:
            registry: Table of the block's kind.
            extra: Further keyword arguments, such as an optimizer's ``params``; the block's own win.

        Raises:
            UserError: An argument is missing or unknown.
        """
        target = registry.get(self.type)
        keywords = {**extra, **self.arguments}
        try:
            inspect.signature(target).bind(**keywords)
        except TypeError as error:
            raise UserError(f"{registry.kind} '{self.type}': {error}; correct the block of this type") from error
        return target(**keywords)


class MetricOptions(Component, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A metric and which way it improves."""

    better: Annotated[Literal["higher", "lower"], Meta(description="Which way the metric improves.")] = "higher"
