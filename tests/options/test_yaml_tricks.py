"""YAML tricks in option files, on the command line and in table files: one line, soon, and no code is run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from basicsr_quant.cli.main import main, train_main
from basicsr_quant.cli.main import test_main as run_test
from basicsr_quant.errors import UserError
from basicsr_quant.options.load import load_options
from basicsr_quant.options.source import LARGEST_FILE, parse
from basicsr_quant.report.cells import expand, protocol_of, read_table

Loader = Callable[..., Any]
Capture = pytest.CaptureFixture[str]

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{former}'] * 9)}]\n" for former, name in zip("abcdefgh", "bcdefghi", strict=True))
CODE = [
    "!!python/object/apply:os.mkdir [it_ran]",
    "!!python/object/new:os.mkdir [it_ran]",
    "!!python/object/apply:builtins.exec ['import os; os.mkdir(\"it_ran\")']",
    "!!python/object:pathlib.Path {}",
    "!!python/name:os.mkdir",
    "!!python/module:os",
    "!!python/tuple [1]",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [it_ran]",
    "!<!python/object/apply:os.mkdir> [it_ran]",
    "!!map {!!python/object/apply:os.mkdir [it_ran]: 1}",
]


def one_error(code: int, capfd: Capture, *parts: str) -> None:
    lines = capfd.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and lines[0].isprintable(), lines
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", CODE)
def test_no_code_is_run(here: Path, small_options: dict[str, Any], capfd: Capture, value: str) -> None:
    """As a value, as a whole file, under another name of the tag, on the command line and in a table."""
    text = yaml.safe_dump(small_options)
    short = value.replace("!!python/", "!e!python/").replace("!!map", "!e!map")
    for content in (f"x: {value}\n{text}", value, f"? {value}\n: 1\n", f"network_Q: {value}\n",
                    f"%TAG !e! tag:yaml.org,2002:\n---\nx: {short}\n"):
        (here / "o.yml").write_text(content)
        one_error(train_main(["-opt", "o.yml"]), capfd, "o.yml")
    one_error(main(["table", "show", "o.yml"]), capfd, "o.yml")
    (here / "o.yml").write_text(text)
    for setting in (f"name={value}", f"train:optim_bound={{type: {value}}}", f"quant:plan=[{value}]"):
        one_error(run_test(["-opt", "o.yml", "--force_yml", setting]), capfd, "--force_yml")
    assert [path.name for path in here.iterdir()] == ["o.yml"]


@pytest.mark.parametrize(("content", "part"), [
    (LAUGHS, "alias '*a'"),
    ("a: &a {b: *a}\n", "alias '*a'"),
    ("name: x\n" + "#" * 10 * 2**20, "larger than"),
    ("a: " + "[" * 200_000, "nested more than"),
    ("a:\n" + "".join(" " * depth + "- \n" for depth in range(1, 60)), "nested more than"),
    (f"? {'k' * 100_000}\n: 1\n", "longer than 200 characters"),
    (f"a: 0x{'f' * 200_000}\n", "not a finite number"),
    (f"a: {'9' * 200_000}\n", "not a finite number"),
])
def test_bombs_are_refused_soon(here: Path, content: str, part: str) -> None:
    (here / "o.yml").write_text(content)
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        load_options("o.yml")
    assert part in str(caught.value) and str(caught.value).startswith("o.yml") and len(str(caught.value)) < 300
    assert time.process_time() - began < 2


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["1,", "[],", "k: 1\n", '"",', "- 1\n", "a b ", "&a 1,", "!!str a,", "\n# c", "'"])
def test_the_largest_file_takes_no_minutes(unit: str) -> None:
    start = {"k: 1\n": "", "- 1\n": "", "a b ": "x: ", "\n# c": "x: 1"}.get(unit, "x: [")
    text = start + unit * ((LARGEST_FILE - 8) // len(unit)) + ("]" if start.endswith("[") else "")
    began = time.process_time()
    try:
        parse(text, "o.yml", {})
    except UserError as error:
        assert str(error).isprintable()
    assert time.process_time() - began < 60


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "latin-1", "cp037"])
def test_encodings(here: Path, load: Loader, small_options: dict[str, Any], encoding: str) -> None:
    """UTF-8 with or without a byte-order mark is read, the others are named as what is wrong."""
    small_options["val"]["suffix"] = "für"
    text = yaml.safe_dump(small_options, allow_unicode=True)
    (here / "o.yml").write_bytes(text.encode(encoding))
    if encoding == "utf-8-sig":
        assert load_options("o.yml") == load(text)
    else:
        with pytest.raises(UserError, match=r"^o.yml: not UTF-8 text"):
            load_options("o.yml")
    (here / "o.yml").write_bytes(text.encode("ascii", "replace").decode().encode("utf-16-le"))
    with pytest.raises(UserError, match=r"^o.yml: not YAML"):
        load_options("o.yml")


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_line_ends(here: Path, load: Loader, small_options: dict[str, Any], newline: str) -> None:
    text = yaml.safe_dump(small_options)
    wanted = load(text)
    (here / "o.yml").write_bytes(text.replace("\n", newline).encode())
    assert load_options("o.yml") == wanted


@pytest.mark.parametrize(("line", "message"), [
    ("\tname: x", r"o.yml:1: .*'\\t' that cannot start any token"),
    ("val:\n\tval_freq: 1", "o.yml:2: .*'\\\\t' that cannot start any token"),
    ("<<: {name: y}", "o.yml:1: unknown key '<<'"),
    ("val: {<<: {val_freq: 1}}", "o.yml:1: unknown key 'val:<<'"),
    ('name: "a\\0b"', "o.yml:1: a text holds a NUL character"),
    ('"na\\0me": x', "o.yml:1: a text holds a NUL character"),
    ("name: a\0b", "o.yml: not YAML"),
    ('path: {experiments_root: "a\\0b"}', "o.yml:1: a text holds a NUL character"),
    ('datasets: {"val\\n": {name: A, dataroot_lq: a}}', "o.yml:1: unknown key 'datasets:val '"),
    ("true: 1", "o.yml:1: unknown key 'true'"),
    ("null: 1", "o.yml:1: unknown key 'null'"),
    ("1: 1", "o.yml:1: unknown key '1'"),
    ("name : x\nname: y", "o.yml:2: duplicate key 'name'"),
    ('name: x\n"na\\u006de": y', "o.yml:2: duplicate key 'name'"),
    ("'Name': x", "o.yml:1: unknown key 'Name' .did you mean 'name'"),
    ('"name\\u200b": x', "o.yml:1: unknown key 'name ' .did you mean 'name'"),
    ("name: |\n  a\n  b", "'name' names a folder"),
])
def test_keys_and_texts_that_look_like_others(load: Loader, small_options: dict[str, Any], line: str,
                                              message: str) -> None:
    for key in (key for key in ("name", "val", "datasets") if line.startswith(key)):
        del small_options[key]
    with pytest.raises(UserError, match=message) as caught:
        load(f"{line}\n{yaml.safe_dump(small_options)}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("setting", [
    "", "=", "==", ":", ":=1", "a", "a:", "a:=1", ":a=1", "a::b=1", " = ", "name", "name:=x", "train: =1", "\t=1",
    "\x1b[2J=1", "val:metrics:\udcff={type: calculate_psnr}", "name=\udcff", "val:metrics:a\nb={type: calculate_psnr}",
    f"{'k' * 300}=1", f"{'k' * 100_000}", f"name={'n' * 100_000}", f"bit={'[' * 100_000}", "bit=[1", "bit={", "bit=*a",
    "bit=&a 3 4", "name=a: b: c", "name=!!binary aGk=", "name=- a", "bit=3\n---\n4", "__class__=1", "name.upper=1",
    "train:__init__=1", "val:metrics=[]", "datasets:=1", "datasets:x=1", "train:optim_bound=__import__('os')",
])
def test_settings_that_are_none(load: Loader, small_options: dict[str, Any], setting: str) -> None:
    with pytest.raises(UserError) as caught:
        load(small_options, "bit=4", setting)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    assert "--force_yml" in str(caught.value)


def table(folder: Path, settings: dict[str, Any] | None = None, **changes: Any) -> Path:
    cell = {"labels": {"method": "m", "bit": "{bit}"}, "test": {"opt": "{opt}", "force": ["{more}"]}}
    known = {"bit": 3, "opt": "o.yml", "more": ["bit={bit}"], "note": "n", **(settings or {})}
    content = {"name": "small", "title": "Small", "protocol": "{note}", "cells": [cell], "settings": known, **changes}
    (folder / "t.yml").write_text(yaml.safe_dump(content))
    return folder / "t.yml"


DOUBLING = {f"a{number}": f"{{a{number + 1}}}{{a{number + 1}}}" for number in range(30)} | {"a30": ""}
CHAIN = {f"a{number}": f"{{a{number + 1}}}" for number in range(2000)}


@pytest.mark.parametrize(("changes", "message"), [
    ({"colour": 1}, "unknown field `colour`"),
    ({"name": "../up"}, r"\$\.name"), ({"name": "a\n"}, r"\$\.name"), ({"name": "x" * 200}, r"\$\.name"),
    ({"name": ""}, r"\$\.name"), ({"name": "/tmp"}, r"\$\.name"), ({"cells": 3}, r"\$\.cells"),
    ({"cells": [{"labels": {}}]}, "missing required field `test`"), ({"metrics": {"psnr": -1}}, r"\$\.metrics"),
    ({"metrics": {"psnr": 10**9}}, r"\$\.metrics"), ({"published": "../../../../etc/passwd"}, r"\$\.published"),
    ({"settings": {"bit": {"a": 1}}}, r"\$\.settings"),
    ({"settings": {"bit": "{opt}", "opt": "{bit}"}}, "holds {bit}, which has no value"),
    ({"settings": {"more": ["{more}"]}}, "holds {more}, which has no value"),
    ({"settings": {**DOUBLING, "note": "{a0}"}}, "which has no value"),
    ({"settings": {**CHAIN, "note": "{a0}"}}, "which has no value"),
    ({"settings": {"note": "{b}" * 100, "b": "{c}" * 100, "c": "ha"}}, "longer than"),
    ({"cells": [{"labels": {"a": "x"}, "test": {"opt": "o"},
                 "each": {key: list(range(99)) for key in "abcdef"}}]}, "more than 10000 cells"),
    *(({"cells": [{"labels": {"a": label}, "test": {"opt": "o"}}]}, "the labels .* name a folder")
      for label in ("..", "a\nb", "\x1b[2J", "x" * 500, "a\\b", "a/../b")),
])
def test_table_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        content = read_table(table(tmp_path, **changes))
        protocol_of(content, {})
        list(expand(content, {}))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_values_of_tables_are_filled_in_once(tmp_path: Path) -> None:
    """A value may name others, a list may name lists, and what is not a name of letters stays."""
    settings = {"bit": "{low}", "low": 2, "opt": "{note}.yml", "note": "n", "more": ["bit={bit}", "{rest}"],
                "rest": ["datasets:val:filename_tmpl={}x4", "quant={plan: []}"]}
    (cell,) = expand(read_table(table(tmp_path, settings=settings)), {"low": 3})
    assert cell.labels == {"method": "m", "bit": "3"} and cell.test.opt == "n.yml"
    assert cell.test.force == ["bit=3", "datasets:val:filename_tmpl={}x4", "quant={plan: []}"]
