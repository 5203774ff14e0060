"""Option files as plain values: a strict YAML 1.2 reader that remembers where every key stands."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from basicsr_quant.errors import UserError

KeyPath = tuple[Any, ...]
LARGEST_FILE = 1 << 18
LONGEST_KEY = 200
DEEPEST_LEVEL = 24
CORE = "tag:yaml.org,2002:"
INTEGERS = range(-2**63, 2**63)


class StrictLoader(yaml.SafeLoader):
    """PyYAML's composer with the scalar rules of YAML 1.2; it makes nodes only, never objects."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node; aliases and deep nesting are refused."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem=f"the alias '*{event.anchor}' is not supported, write the value out "
                                               "(or quote it)", problem_mark=mark)
        if self._depth >= DEEPEST_LEVEL:
            raise yaml.MarkedYAMLError(problem=f"blocks are nested more than {DEEPEST_LEVEL} deep",
                                       problem_mark=mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


for _name, _pattern, _first in [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+0123456789.")),
]:
    StrictLoader.add_implicit_resolver(CORE + _name, re.compile(f"^(?:{_pattern})$"), _first)


class Tree:
    """Options as nested dicts, with the place every key path came from.

    Args:
        file: Name of the file for messages.
        values: The outer block.
        origins: Key path -> ``file:line`` or the command-line setting.
    """

    def __init__(self, file: str, values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
        self.file = file
        self.values = values
        self.origins = origins

    def origin(self, path: KeyPath) -> str:
        """Return where ``path``, or the nearest block around it, was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.file

    def block(self, path: KeyPath) -> dict[str, Any] | None:
        """Return the block at ``path``, or nothing if there is none."""
        value: Any = self.values
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else None

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        """Set the value at ``path``, making the blocks above it.

        Raises:
            UserError: Something above is not a block.
        """
        block = self.values
        for depth, part in enumerate(path[:-1]):
            if block.get(part) is None:
                block[part] = {}
                self.origins[path[:depth + 1]] = origin
            block = block[part]
            if not isinstance(block, dict):
                raise failure(f"{origin}: '{joined(path[:depth + 1])}' is not a block of keys, "
                              f"so '{joined(path)}' cannot be set")
        block[path[-1]] = value
        for known in [known for known in self.origins if known[:len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin


def joined(path: KeyPath) -> str:
    """Return a key path as users write it, with ``:`` between levels."""
    return ":".join(str(part) for part in path)


def one_line(text: str) -> str:
    """Return a message with line breaks and control characters replaced by blanks."""
    return "".join(character if character.isprintable() else " " for character in text)


def failure(message: str) -> UserError:
    """Return a user's error of one line."""
    return UserError(one_line(message))


def read_tree(path: str | Path) -> Tree:
    """Read one option file.

    Raises:
        UserError: The file is absent, too large, not UTF-8, not YAML, or holds no block of keys; file and line are
            named.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise failure(f"cannot read the option file '{path}': {reason}; check the path after -opt") from error
    if len(content) > LARGEST_FILE:
        raise failure(f"{path}: larger than {LARGEST_FILE} bytes, so not an option file")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise failure(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    origins: dict[KeyPath, str] = {}
    values = parse(text, str(path), origins)
    if not isinstance(values, dict):
        raise failure(f"{path}: expected a block of 'key: value' lines")
    return Tree(str(path), values, origins)


def parse(text: str, place: str, origins: dict[KeyPath, str] | None = None) -> Any:
    """Parse YAML text to dicts, lists, texts, finite numbers, booleans and None.

    Args:
        text: The YAML.
        place: File (or command-line setting) for messages.
        origins: Filled with key path -> ``place:line`` if given; without it ``place`` alone is named in messages.
    """
    builder = _Builder(place, origins)
    try:
        node = StrictLoader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise builder.error(mark, error.problem or error.context or "not YAML") from error
    except yaml.YAMLError as error:
        raise builder.error(None, f"not YAML: {str(error).splitlines()[0]}") from error
    return None if node is None else builder.build(node, ())


class _Builder:
    """Turns nodes into plain values."""

    def __init__(self, place: str, origins: dict[KeyPath, str] | None) -> None:
        self.place = place
        self.origins = origins

    def at(self, mark: Any) -> str:
        return f"{self.place}:{mark.line + 1}" if mark is not None and self.origins is not None else self.place

    def error(self, mark: Any, problem: str) -> UserError:
        return failure(f"{self.at(mark)}: {problem}")

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == CORE + "map":
            return self.build_block(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == CORE + "seq":
            values = []
            for index, item in enumerate(node.value):
                self.remember((*path, index), item.start_mark)
                values.append(self.build(item, (*path, index)))
            return values
        if isinstance(node, yaml.ScalarNode):
            return self.build_scalar(node, path)
        raise self.refused(node, path)

    def remember(self, path: KeyPath, mark: Any) -> None:
        if self.origins is not None:
            self.origins[path] = self.at(mark)

    def refused(self, node: yaml.Node, path: KeyPath) -> UserError:
        tag = node.tag.replace(CORE, "!!")
        key = f" at '{joined(path)}'" if path else ""
        return self.error(node.start_mark, f"the tag '{tag}'{key} is not supported; write the plain value")

    def build_block(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        block: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
                raise self.error(key_node.start_mark, f"a key of '{joined(path) or 'the file'}' is not a plain word")
            key = self.text(key_node.value, key_node.start_mark)
            if len(key) > LONGEST_KEY:
                raise self.error(key_node.start_mark, f"a key of '{joined(path) or 'the file'}' is longer than "
                                                      f"{LONGEST_KEY} characters")
            if key in block:
                raise self.error(key_node.start_mark, f"duplicate key '{joined((*path, key))}'; keep one of the two")
            self.remember((*path, key), key_node.start_mark)
            block[key] = self.build(value_node, (*path, key))
        return block

    def build_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(CORE), node.value
        if kind == "null":
            return None
        if kind == "str":
            return self.text(text, node.start_mark)
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        try:
            if kind == "int":
                return self.integer(text)
            if kind == "float" and math.isfinite(float(text)):
                return float(text)
        except ValueError:
            pass
        if kind not in ("bool", "int", "float"):
            raise self.refused(node, path)
        key = f"'{joined(path)}': " if path else ""
        wanted = "true or false" if kind == "bool" else "a finite number of ordinary size"
        raise self.error(node.start_mark, f"{key}'{text[:40]}' is not {wanted}")

    def text(self, text: str, mark: Any) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.error(mark, f"a text is not Unicode ({error.reason})") from error
        if "\0" in text:
            raise self.error(mark, "a text holds a NUL character")
        return text

    @staticmethod
    def integer(text: str) -> int:
        number = int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if number not in INTEGERS:
            raise ValueError(text)
        return number
