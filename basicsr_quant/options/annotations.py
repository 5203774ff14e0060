"""Reading type annotations: what an option's type is, for the converter, and in words for users."""

from __future__ import annotations

import collections.abc
import types
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from basicsr_quant.registry import Registry

REQUIRED: Any = object()
SEQUENCES = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
MAPPINGS = (dict, collections.abc.Mapping)
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null",
         list: "a list", tuple: "a list", dict: "a block of keys", Any: "any value"}


class Field(NamedTuple):
    """One key: its full annotation, and the parts of it that matter.

    Args:
        annotation: As written, with constraints.
        core: The same without metadata and None.
        optional: Whether None is a value of its own.
        description: What the key means.
        extra: Marks for the converter: ``registry``, ``supplied``, ``complete``.
        default: Value of an absent key, or ``REQUIRED``.
    """

    annotation: Any
    core: Any
    optional: bool
    description: str
    extra: dict[str, Any]
    default: Any

    @property
    def registry(self) -> Registry | None:
        """Return the table that names of this key come from."""
        return self.extra.get("registry")

    @property
    def struct(self) -> type[msgspec.Struct] | None:
        """Return the struct that this key holds, if it holds one."""
        return self.core if isinstance(self.core, type) and issubclass(self.core, msgspec.Struct) else None

    @property
    def is_leaf(self) -> bool:
        """Return whether msgspec converts the value alone."""
        return self.struct is None and self.family is None and self.registry is None

    @property
    def family(self) -> tuple[Any, Any] | None:
        """Return the annotations of keys and values if this is an open family of structs."""
        if get_origin(self.core) is dict:
            key, value = get_args(self.core)
            if field_of(value).struct is not None:
                return key, value
        return None


def fields_of(struct: type[msgspec.Struct]) -> dict[str, Field]:
    """Return the keys of a struct, in order."""
    return {info.name: field_of(info.type, _default(info)) for info in msgspec.structs.fields(struct)}


def _default(info: msgspec.structs.FieldInfo) -> Any:
    if info.default_factory is not msgspec.NODEFAULT:
        return info.default_factory()
    return REQUIRED if info.required else info.default


def field_of(annotation: Any, default: Any = REQUIRED) -> Field:
    """Take an annotation apart."""
    core, metas = unwrap(annotation)
    members = union_members(core)
    optional = type(None) in members
    if optional:
        core, inner = unwrap(Union[tuple(member for member in members if member is not type(None))])  # noqa: UP007
        metas = metas + inner
    description = next((meta.description for meta in metas if meta.description), "")
    extra = next((meta.extra for meta in metas if meta.extra), {})
    return Field(annotation, core, optional, description, extra, default)


def unwrap(annotation: Any) -> tuple[Any, list[Meta]]:
    """Return an annotation without its metadata, and that metadata."""
    if get_origin(annotation) is Annotated:
        inner, *metas = get_args(annotation)
        return inner, [meta for meta in metas if isinstance(meta, Meta)]
    return annotation, []


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def choices(annotation: Any) -> list[Any]:
    """Return all values that literals in the annotation allow."""
    inner, _ = unwrap(annotation)
    return [value for member in union_members(inner) if get_origin(unwrap(member)[0]) is Literal
            for value in get_args(unwrap(member)[0])]


def describe(annotation: Any) -> str:
    """Say in words what values an annotation allows: "an integer from 1 to 8 or null"."""
    inner, metas = unwrap(annotation)
    members = union_members(inner)
    if len(members) > 1:
        return " or ".join(dict.fromkeys(describe(member) for member in members))
    origin, arguments = get_origin(inner), get_args(inner)
    if origin is Literal:
        values = [str(value) for value in arguments]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if origin is tuple and Ellipsis not in arguments:
        return f"a list of {len(arguments)} values ({', '.join(describe(argument) for argument in arguments)})"
    if origin in (*SEQUENCES, tuple) and arguments:
        return f"a list (of: {describe(arguments[0])})"
    words = WORDS.get(origin or inner, "a block of keys" if isinstance(inner, type) else "a value")
    return words + "".join(_range(meta) for meta in metas)


def _range(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge} to {meta.le}"
    bounds = [f"{sign} {value}" for sign, value in (("of at least", meta.ge), ("below", meta.lt)) if value is not None]
    if meta.pattern == r"\{\}":
        bounds.append("that holds {}")
    if meta.min_length:
        bounds.append("that is not empty")
    return " " + " and ".join(bounds) if bounds else ""


def writable(annotation: Any) -> Any | None:
    """Return what of a Python annotation YAML can express, ``Any`` for the unknown, or None for nothing.

    Tensors, callables and other objects are taken out of unions; sequences of any kind become lists.
    """
    inner, _ = unwrap(annotation)
    if inner in (Any, object) or isinstance(inner, str):
        return Any
    members = union_members(inner)
    if len(members) > 1:
        kept = [plain for plain in map(writable, members) if plain is not None]
        return Union[tuple(kept)] if set(kept) - {type(None)} else None  # noqa: UP007
    origin, arguments = get_origin(inner), get_args(inner)
    if origin is Literal or (origin is None and inner in WORDS):
        return annotation
    if origin is tuple:
        parts = [writable(argument) for argument in arguments if argument is not Ellipsis]
        if None in parts:
            return None
        return types.GenericAlias(tuple, (*parts, ...) if Ellipsis in arguments else tuple(parts))
    if (origin or inner) in SEQUENCES:
        item = writable(arguments[0]) if arguments else Any
        return None if item is None else types.GenericAlias(list, (item,))
    return dict[str, Any] if (origin or inner) in MAPPINGS else None
