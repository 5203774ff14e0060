"""From plain values to typed options; every mistake is one line that names the key and where it was written."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from msgspec import Meta

from basicsr_quant.options.annotations import REQUIRED, Field, field_of, fields_of, unwrap
from basicsr_quant.options.component import Component
from basicsr_quant.options.problems import Problems, leaf, quoted
from basicsr_quant.options.signature import checked_arguments
from basicsr_quant.options.source import KeyPath, Tree, joined
from basicsr_quant.registry import ARCHS, Registry, nearest

LIBRARY = "basicsr:"
Struct = TypeVar("Struct", bound=msgspec.Struct)


def to_struct(struct: type[Struct], tree: Tree) -> Struct:
    """Return a whole tree as ``struct``.

    Raises:
        UserError: A key is unknown or missing, or a value has the wrong type or range.
    """
    made: Struct = Converter(tree).struct(struct, tree.values, ())
    return made


class Converter(Problems):
    """Walks values and types together."""

    def block(self, value: Any, path: KeyPath) -> dict[str, Any]:
        """Return a value that has to be a block of keys."""
        if not isinstance(value, dict):
            raise self.wrong(path, dict, value)
        return value

    def struct(self, struct: type[msgspec.Struct], value: Any, path: KeyPath) -> Any:
        """Return a block as ``struct``."""
        fields, given = fields_of(struct), {}
        for key, item in self.block(value, path).items():
            if key not in fields:
                raise self.unknown((*path, key), list(fields))
            if item is not None or fields[key].optional:
                given[key] = self.field(fields[key], item, (*path, key))
        for key, field in fields.items():
            if field.default is REQUIRED and key not in given:
                raise self.error(path, f"missing key '{joined((*path, key))}' ({field.description.rstrip('.')})")
        return struct(**given)

    def field(self, field: Field, value: Any, path: KeyPath) -> Any:
        """Return the value of one key."""
        if value is None and field.optional:
            return None
        if field.struct is not None:
            if issubclass(field.struct, Component):
                return self.component(field, field.struct, value, path)
            return self.struct(field.struct, value, path)
        if field.family is not None:
            return self.family(*field.family, value, path)
        if field.registry is not None:
            return self.choice(field, field.registry, value, path)
        try:
            return leaf(value, field.annotation)
        except msgspec.ValidationError as error:
            raise self.wrong(path, field.annotation, value) from error

    def family(self, key_annotation: Any, value_annotation: Any, value: Any, path: KeyPath) -> dict[str, Any]:
        """Return an open family of blocks."""
        member = field_of(value_annotation)
        patterns = [meta.pattern for meta in unwrap(key_annotation)[1] if isinstance(meta, Meta) and meta.pattern]
        family = {}
        for key, item in self.block(value, path).items():
            if not all(re.fullmatch(pattern, key) for pattern in patterns):
                raise self.unknown((*path, key), ["train", "val", "val_1", "test_1", "calibration"])
            family[key] = self.field(member, item, (*path, key))
        return family

    def name(self, registry: Registry, value: Any, path: KeyPath) -> str:
        """Return a name of ``registry``; a network ``basicsr:NAME`` is left to its builder."""
        if not isinstance(value, str):
            raise self.wrong(path, str, value)
        if value not in registry and not (registry is ARCHS and value.startswith(LIBRARY)):
            hint = nearest(value, list(registry))
            known = [*registry, f"{LIBRARY}NAME"] if registry is ARCHS else registry
            raise self.error(path, f"'{joined(path)}': unknown {registry.kind} {quoted(value)}{hint}; "
                                   f"known: {', '.join(known)}")
        return value

    def component(self, field: Field, struct: type[Component], value: Any, path: KeyPath) -> Component:
        """Return a block ``{type: X, ...}`` as a component; keys that the struct itself declares are its fields."""
        block = self.block(value, path)
        registry = field.registry
        if "type" not in block:
            raise self.error((*path, "type"), f"missing key '{joined((*path, 'type'))}'"
                                              + (f" (one of {', '.join(registry)})" if registry else ""))
        name = block["type"]
        if registry is not None:
            name = self.name(registry, name, (*path, "type"))
        own = {key: declared for key, declared in fields_of(struct).items() if key not in ("type", "arguments")}
        given = {key: self.field(own[key], item, (*path, key)) for key, item in block.items() if key in own}
        arguments = {key: item for key, item in block.items() if key != "type" and key not in own}
        return struct(type=name, arguments=self.arguments(field, name, arguments, path), **given)

    def arguments(self, field: Field, name: str, arguments: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        """Check arguments against the signature of what ``name`` stands for."""
        registry = field.registry
        if registry is None or name not in registry:
            return arguments
        return checked_arguments(self, registry, name, arguments, path, supplied=field.extra.get("supplied", ()),
                                 complete=field.extra.get("complete", False))

    def choice(self, field: Field, registry: Registry, value: Any, path: KeyPath) -> Any:
        """Return a name of a registry, or a block ``{type: NAME, ...}`` where the annotation allows one."""
        if isinstance(value, dict) and field.core is not str:
            if "type" not in value:
                raise self.error((*path, "type"), f"missing key '{joined((*path, 'type'))}' "
                                                  f"(one of {', '.join(registry)})")
            name = self.name(registry, value["type"], (*path, "type"))
            rest = {key: item for key, item in value.items() if key != "type"}
            return {"type": name, **self.arguments(field, name, rest, path)}
        if not isinstance(value, str):
            raise self.wrong(path, field.core, value)
        return self.name(registry, value, path)
