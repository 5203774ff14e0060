"""Whatever an option file or command line says, the answer is typed options or one line."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basicsr_quant.errors import UserError
from basicsr_quant.options.effective import effective_yaml, plain
from basicsr_quant.options.load import load_options, options_of
from basicsr_quant.options.source import Tree, parse

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(__file__).parent / "published"
FILES = {
    "TDQuantModel": PUBLISHED / "train_x4.yml",
    "BIDiffSRModel": ROOT / "options/train/train_BI_DiffSR_x2.yml",
    "SRModel": ROOT / "options/train/train_SwinIR_light_x2.yml",
    "OSEDiffModel": ROOT / "options/train/train_OSEDiff.yml",
    "PassionSRModel": ROOT / "options/train/train_PassionSR_tiny.yml",
}
AS_PUBLISHED = ("train_x4", "bi_diffsr_train_x4", "passionsr_u_w6a6", "passionsr_uv_w8a8")
SPECIAL = [0, -1, 1, 10**18, 1e300, "auto", "released", "{}", "9" * 5000]
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")  # the reader refuses these
SCALARS = st.none() | st.booleans() | st.integers(-2**63, 2**63 - 1) | st.text(LETTERS, max_size=12) | st.floats(
    allow_nan=False, allow_infinity=False) | st.sampled_from(SPECIAL)
KEYS = st.text(LETTERS, min_size=1, max_size=6) | st.sampled_from(["type", "lr", "name", "train"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
                      max_leaves=6)
SCHEDULERS = ("MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR", "CosineAnnealingLR", "Constant")
Path_ = tuple[str, ...]


def key_paths(options: Any, path: Path_ = ()) -> list[Path_]:
    found = [path] if path else []
    if isinstance(options, dict):
        for key, value in options.items():
            found += key_paths(value, (*path, key))
    return found


def block_of(options: dict[str, Any], path: Path_) -> dict[str, Any]:
    for part in path:
        options = options[part]
    return options


logging.disable()
BASES = {name: plain(load_options(file)) for name, file in FILES.items()}
RAW = {name: parse((PUBLISHED / f"{name}.yml").read_text(), name) for name in AS_PUBLISHED}
logging.disable(logging.NOTSET)
EVERYTHING = {**BASES, **RAW}
PATHS = {name: key_paths(options) for name, options in EVERYTHING.items()}
ANY_PATH = st.sampled_from([(name, path) for name in EVERYTHING for path in PATHS[name]])


def attempt(options: dict[str, Any], is_train: bool) -> None:
    """Convert nested values; what is accepted reads back equal from its effective options."""
    try:
        typed = options_of(Tree("f.yml", copy.deepcopy(options), {}), is_train)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 2000
    else:
        again = options_of(Tree("f.yml", parse(effective_yaml(typed), "effective"), {}), is_train)
        assert again == typed


@pytest.fixture(scope="module", autouse=True)
def silence() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "f.yml"


def fuzzed(examples: int) -> Callable[[Any], Any]:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def change(place: tuple[str, Path_], value: Any, rename: str | None, is_train: bool) -> None:
    """Put a value, or a key, where another was."""
    name, path = place
    options = copy.deepcopy(EVERYTHING[name])
    block = block_of(options, path[:-1])
    if rename is not None:
        block[rename] = block.pop(path[-1])
    else:
        block[path[-1]] = value
    attempt(options, is_train)


CHANGES = given(place=ANY_PATH, value=VALUES, rename=st.none() | st.text(LETTERS, min_size=1, max_size=8),
                is_train=st.booleans())
BYTES = given(content=st.binary(max_size=60) | st.text(
    alphabet="ab:{}[]-,&*!?|>%@\"'# \n\t~1.e\ufeff\x85\u2028\0", max_size=60).map(str.encode))
SETTINGS = given(setting=st.builds(
    "".join, st.tuples(st.sampled_from([":".join(path) for path in PATHS["TDQuantModel"]]) | st.text(max_size=6),
                       st.sampled_from(["=", ":", "", ":x=", "::=", "=="]),
                       st.text(max_size=12) | st.text(alphabet="[]{}:,!&*~ '\"\\x0\udcff", max_size=12))))
ARGUMENTS = given(type_=st.sampled_from(SCHEDULERS), key=st.sampled_from(
    ["milestones", "gamma", "restarts", "restart_weights", "periods", "eta_min", "T_max", "eta_mins"]), value=VALUES)


@fuzzed(80)
@CHANGES
def test_values_and_keys(place: tuple[str, Path_], value: Any, rename: str | None, is_train: bool) -> None:
    change(place, value, rename, is_train)


@fuzzed(60)
@BYTES
def test_any_bytes(file: Path, content: bytes) -> None:
    load_bytes(file, content)


@fuzzed(25)
@SETTINGS
def test_any_command_line(setting: str) -> None:
    load_setting(setting)


@fuzzed(60)
@ARGUMENTS
def test_arguments_of_schedulers(type_: str, key: str, value: Any) -> None:
    change_scheduler(type_, key, value)


@pytest.mark.slow
@fuzzed(1500)
@CHANGES
def test_many_values_and_keys(place: tuple[str, Path_], value: Any, rename: str | None, is_train: bool) -> None:
    change(place, value, rename, is_train)


@pytest.mark.slow
@fuzzed(4000)
@BYTES
def test_many_bytes(file: Path, content: bytes) -> None:
    load_bytes(file, content)


@pytest.mark.slow
@fuzzed(600)
@SETTINGS
def test_many_command_lines(setting: str) -> None:
    load_setting(setting)


@pytest.mark.slow
@fuzzed(2000)
@ARGUMENTS
def test_many_arguments_of_schedulers(type_: str, key: str, value: Any) -> None:
    change_scheduler(type_, key, value)


def load_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:  # nothing so short is an option file
        load_options(file)
    assert str(caught.value).isprintable()


def load_setting(setting: str) -> None:
    try:
        load_options(FILES["TDQuantModel"], [setting])
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 2000


def change_scheduler(type_: str, key: str, value: Any) -> None:
    options = copy.deepcopy(BASES["SRModel"])
    wanted = {"MultiStepRestartLR": {"milestones": [3]}, "MultiStepLR": {"milestones": [3]},
              "CosineAnnealingRestartLR": {"periods": [4, 4], "restart_weights": [1, 1]}}
    options["train"]["scheduler"] = {"type": type_, **wanted.get(type_, {}), key: value}
    attempt(options, is_train=True)


def test_tokens_of_yaml_as_values(file: Path) -> None:
    for value in ("!!python/name:os.system", "&a [*a]", "{<<: {a: 1}}", "? x", "!!float .inf", "\x00", "- - -", "%x"):
        with contextlib.suppress(UserError):
            load_options(FILES["TDQuantModel"], [f"train:total_iter={value}"])
            raise AssertionError(value)


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_key_is_passed_over(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """In every block of every method a key that means nothing is refused, or a log line says that it is not read."""
    logging.disable(logging.NOTSET)
    blocks: list[Path_] = [(), *(path for path in PATHS[name] if isinstance(block_of(EVERYTHING[name], path), dict))]
    for path in blocks:
        for value in (1,) if name in BASES else (1, {}, None):
            options = copy.deepcopy(EVERYTHING[name])
            block_of(options, path)["no_such_key"] = value
            caplog.clear()
            try:
                options_of(Tree("f.yml", options, {}))
            except UserError as error:
                assert "no_such_key" in str(error)
            else:
                ignored = [record.message for record in caplog.records if "ignored" in record.message]
                assert any(f"'{':'.join(path)}" in message for message in ignored), (path, value)
    logging.disable()


@pytest.mark.parametrize(("key", "value", "message"), [
    ("quantize_config", 5, "unknown key 'quantize_config'"),
    ("quantize_config:typo", {}, "unknown key 'quantize_config:typo'"),
    ("basic_config:typo", {}, "unknown key 'basic_config:typo'"),
    ("dataset", [["RealSR"]], "'dataset' must name RealSR"),
    ("device", "cuda:" + "9" * 5000, "'device' must be cpu, cuda or cuda:N"),
    ("cali_img_path", None, "'cali_img_path' must be a text, not null"),
])
def test_published_passionsr_keys_of_wrong_types(key: str, value: Any, message: str) -> None:
    options = copy.deepcopy(RAW["passionsr_uv_w8a8"])
    *blocks, last = key.split(":")
    block_of(options, tuple(blocks))[last] = value
    with pytest.raises(UserError, match=message):
        options_of(Tree("f.yml", options, {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_every_published_key_may_be_of_any_type(name: str) -> None:
    for path in PATHS[name]:
        for value in (None, True, -1, 2.5, "9" * 5000, "cuda:" + "9" * 5000, [], [[1]], {}, {"a": {}}, [{"a": 1}]):
            change((name, path), value, None, is_train=True)
