"""Typed options back as YAML, and the difference between two sets of options."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from basicsr_quant.options.component import Component
from basicsr_quant.options.problems import quoted
from basicsr_quant.options.source import StrictLoader, parse
from basicsr_quant.options.types import Options, arguments_of

OLD_RESOLVERS: dict[Any, list[Any]] = yaml.SafeDumper.yaml_implicit_resolvers
NEW_RESOLVERS: dict[Any, list[Any]] = StrictLoader.yaml_implicit_resolvers


def plain(options: Any) -> Any:
    """Return typed options as nested dicts, as a file holds them."""
    if isinstance(options, Component):
        return plain(arguments_of(options))
    if isinstance(options, msgspec.Struct):
        return {key: plain(getattr(options, key)) for key in options.__struct_fields__}
    if isinstance(options, dict):
        return {key: plain(value) for key, value in options.items()}
    return [plain(value) for value in options] if isinstance(options, list | tuple) else options


def effective_yaml(options: Options) -> str:
    """Return all options, defaults and presets included, as YAML that ``load_options`` reads back."""
    return yaml.dump(plain(options), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


class _PlainDumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or 1.2 would read as something else; writes no aliases."""

    yaml_implicit_resolvers = {
        first: [*OLD_RESOLVERS.get(first, []), *NEW_RESOLVERS.get(first, [])]
        for first in {*OLD_RESOLVERS, *NEW_RESOLVERS}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def flat(options: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return nested options as one level: ``a:b`` -> value."""
    if isinstance(options, dict) and options:
        return {key: value for name, item in options.items() for key, value in flat(item, (*path, str(name))).items()}
    return {":".join(path): options}


def difference(before: str, after: str) -> list[str]:
    """Return how two texts of ``effective_yaml`` differ, one line ``key: old -> new`` for each key.

    Args:
        before: Options of the interrupted run.
        after: Options of the run that goes on.
    """
    old, new = flat(parse(before, "options of the interrupted run")), flat(parse(after, "options"))
    absent = "(absent)"
    return [f"{key}: {quoted(old[key]) if key in old else absent} -> {quoted(new[key]) if key in new else absent}"
            for key in [*old, *(key for key in new if key not in old)] if old.get(key, absent) != new.get(key, absent)]
