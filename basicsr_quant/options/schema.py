"""JSON schema of option files, for completion and checks in editors, from the same types as the run-time check."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from basicsr_quant.options.annotations import Field, field_of, fields_of, unwrap
from basicsr_quant.options.component import Component
from basicsr_quant.options.method import METHODS
from basicsr_quant.registry import ARCHS, Registry

Schema = dict[str, Any]
LIBRARY_NAME = {"type": "string", "pattern": "^basicsr:"}


def json_schema() -> str:
    """Return the schema of all methods' option files as JSON text; ``model_type`` chooses among them."""
    structs: dict[str, Schema] = {}
    branches = []
    for model_type in METHODS:
        outer = METHODS.get(model_type).options
        named = {"properties": {"model_type": {"const": model_type}}}
        branches.append({"if": named, "then": _reference(outer, structs)})
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Option file of basicsr_quant",
        "type": "object",
        "required": ["model_type"],
        "properties": {"model_type": {"enum": list(METHODS)}},
        "allOf": branches,
        "definitions": dict(sorted(structs.items())),
    }
    return json.dumps(schema, indent=1) + "\n"


def _reference(struct: type[msgspec.Struct], structs: dict[str, Schema]) -> Schema:
    """Return a reference to a struct's schema, which is added to ``structs`` on first use."""
    name = struct.__name__
    if name not in structs:
        structs[name] = {}
        properties = {key: _property(field, structs) for key, field in fields_of(struct).items()}
        structs[name] = {
            "description": (struct.__doc__ or "").split("\n")[0], "type": "object", "properties": properties,
            "additionalProperties": False,
        }
    return {"$ref": f"#/definitions/{name}"}


def _property(field: Field, structs: dict[str, Schema]) -> Schema:
    schema = _value(field, structs)
    if field.optional and not field.is_leaf:
        schema = {"anyOf": [schema, {"type": "null"}]}
    if field.description:
        schema = {"description": field.description, **({"allOf": [schema]} if "$ref" in schema else schema)}
    if isinstance(field.default, str | int | float):
        schema["default"] = field.default
    return schema


def _value(field: Field, structs: dict[str, Schema]) -> Schema:
    if field.is_leaf:
        schema = msgspec.json.schema(field.annotation)
        schema.pop("description", None)
        return schema
    if field.struct is not None:
        if issubclass(field.struct, Component):
            return _component(field.struct, field.registry)
        return _reference(field.struct, structs)
    if field.family is not None:
        key, member = field.family
        value = _property(field_of(member), structs)
        patterns = [meta.pattern for meta in unwrap(key)[1] if meta.pattern]
        return {"type": "object", "additionalProperties": False, "patternProperties": {patterns[0]: value}} \
            if patterns else {"type": "object", "additionalProperties": value}
    names = _names(field.registry)
    return names if field.core is str else {"anyOf": [names, _component(Component, field.registry)]}


def _names(registry: Registry | None) -> Schema:
    if registry is None:
        return {"type": "string"}
    names = {"enum": list(registry)}
    return {"anyOf": [names, LIBRARY_NAME]} if registry is ARCHS else names


def _component(struct: type[Component], registry: Registry | None) -> Schema:
    own = {key: _property(field, {}) for key, field in fields_of(struct).items() if key not in ("type", "arguments")}
    return {"type": "object", "required": ["type"], "properties": {"type": _names(registry), **own}}

