"""Whatever an option file or command line says, the answer is typed options or one line."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basicsr_quant.errors import UserError
from basicsr_quant.options.effective import effective_yaml, plain
from basicsr_quant.options.load import load_options

PUBLISHED = Path(__file__).parent / "published" / "train_x4.yml"
SCALARS = st.none() | st.booleans() | st.integers(-10**20, 10**20) | st.floats() | st.text(max_size=12)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=6) | st.sampled_from(["type", "lr", "name", "train"]), inner, max_size=3), max_leaves=6)


def key_paths(options: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    if isinstance(options, dict):
        for key, value in options.items():
            found += key_paths(value, (*path, key))
    return found


BASE = plain(load_options(PUBLISHED))
PATHS = key_paths(BASE)


def attempt(path: Path, force: tuple[str, ...] = (), **keywords: Any) -> None:
    try:
        options = load_options(path, force, **keywords)
    except UserError as error:
        assert str(error).isprintable()
    else:
        path.write_text(effective_yaml(options))
        assert load_options(path, **keywords | {"debug": False}) == options


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    logging.disable()
    yield tmp_path_factory.mktemp("fuzz") / "f.yml"
    logging.disable(logging.NOTSET)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(path=st.sampled_from(PATHS), value=VALUES, rename=st.booleans(), name=st.text(max_size=8), train=st.booleans())
def test_values_and_keys(file: Path, path: tuple[str, ...], value: Any, rename: bool, name: str, train: bool) -> None:
    options = copy.deepcopy(BASE)
    block = options
    for part in path[:-1]:
        block = block[part]
    if rename:
        block[name] = block.pop(path[-1])
    else:
        block[path[-1]] = value
    file.write_text(yaml.safe_dump(options, allow_unicode=True), errors="replace")
    attempt(file, is_train=train, debug=not train)


@FUZZ
@given(content=st.binary(max_size=60) | st.text(alphabet="ab:{}[]-,&*!?|>%@\"'# \n\t~1.e", max_size=60).map(str.encode))
def test_any_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    attempt(file)


@FUZZ
@given(path=st.sampled_from(PATHS), value=st.text(max_size=12), sign=st.sampled_from(["=", ":", "", ":x="]))
def test_any_command_line(file: Path, path: tuple[str, ...], value: str, sign: str) -> None:
    file.write_text(PUBLISHED.read_text())
    attempt(file, (f"{':'.join(path)}{sign}{value}",))


def test_tokens_of_yaml_as_values(file: Path) -> None:
    for value in ("!!python/name:os.system", "&a [*a]", "{<<: {a: 1}}", "? x", "!!float .inf", "\x00", "- - -", "%x"):
        file.write_text(PUBLISHED.read_text())
        with contextlib.suppress(UserError):
            load_options(file, [f"train:total_iter={value}"])
            raise AssertionError(value)
