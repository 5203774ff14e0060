"""The YAML reader: YAML 1.2 scalars, and one line for whatever is not an option file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from basicsr_quant.errors import UserError
from basicsr_quant.options.source import parse, read_tree


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 0.001), ("!!float 2e4", 20000.0), ("1.", 1.0), (".5", 0.5), ("-3", -3), ("0x10", 16), ("0o17", 15),
    ("017", 17), ("yes", "yes"), ("on", "on"), ("2024-01-01", "2024-01-01"), ("true", True), ("FALSE", False),
    ("~", None), ("", None), ("null", None), ("1_000", "1_000"), ("12:30", "12:30"), ("'1e-3'", "1e-3"),
    ("[1, 2.5, a]", [1, 2.5, "a"]), ("{a: {b: ~}}", {"a": {"b": None}}), ("!!int 3", 3), ("a=b", "a=b"),
])
def test_values(text: str, value: Any) -> None:
    parsed = parse(text, "here")
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(("text", "message"), [
    ("a: 1\na: 2\n", r"f.yml:2: duplicate key 'a'"),
    ("a:\n  b: 1\n  b: 2\n", r"f.yml:3: duplicate key 'a:b'"),
    ("a: &x 1\nb: *x\n", r"f.yml:2: the alias '\*x' is not supported"),
    ("a: !!python/object/apply:os.system [ls]\n", r"f.yml:1: the tag '!!python/object/apply:os.system' at 'a'"),
    ("a: !!binary aGk=\n", r"f.yml:1: the tag '!!binary' at 'a'"),
    ("a: !mine 3\n", r"f.yml:1: the tag '!mine'"),
    ("a: !!set {b}\n", r"f.yml:1: the tag '!!set'"),
    ("a: .nan\n", r"f.yml:1: 'a': '.nan' is not a finite number"),
    ("a: .inf\n", r"'.inf' is not a finite number"),
    ("a: 1e999\n", r"'1e999' is not a finite number"),
    ("a: !!float x\n", r"'x' is not a finite number"),
    ("a: !!bool x\n", r"'x' is not true or false"),
    (f"a: {'9' * 5000}\n", r"is not a finite number"),
    ("? [a]\n: 1\n", r"f.yml:1: a key of 'the file' is not a plain word"),
    ("a:\n  ~: 1\n  '': 2\n", r"f.yml:3: a key of 'a' is not a plain word"),
    ("a: [1\n", r"f.yml:\d: expected"),
    ("a: 1\n b: 2\n", r"f.yml:2: mapping values are not allowed"),
    ("a: \t- x\n", r"f.yml:1"),
    ("- 1\n", r"f.yml: expected a block"),
    ("", r"f.yml: expected a block"),
    ("a: 1\n---\nb: 2\n", r"f.yml:2: but found another document"),
    ("a: " + "[" * 400 + "]" * 400, r"f.yml:1: blocks are nested more than"),
    ('a: "\\ud800"\n', r"f.yml:1: a text is not Unicode"),
    ("a: \x01\n", r"f.yml: not YAML"),
    ("%YAML 3.0\n---\na: 1\n", r"f.yml:1"),
])
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.yml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_tree("f.yml")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "large.yml").write_bytes(b"a: 1\n" + b"#" * (1 << 20))
    (tmp_path / "bytes.yml").write_bytes(b"a: \xff\n")
    for name, message in [("none.yml", "No such file"), (".", "directory"), ("large.yml", "larger than"),
                          ("bytes.yml", "not UTF-8"), ("a\0b", "null")]:
        with pytest.raises(UserError, match=message):
            read_tree(tmp_path / name)


def test_places(tmp_path: Path) -> None:
    (tmp_path / "f.yml").write_text("a:\n  b:\n    - 1\n    - 2\nc: 3\n")
    tree = read_tree(tmp_path / "f.yml")
    assert tree.origin(("a", "b", 1)).endswith("f.yml:4")
    assert tree.origin(("a", "b", "unknown")).endswith("f.yml:2")
    assert tree.origin(("z",)).endswith("f.yml")


def test_a_key_with_control_characters_is_shown_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "f.yml").write_text('"a\\nb": 1\n"a\\nb": 2\n')
    with pytest.raises(UserError, match="duplicate key 'a b'"):
        read_tree(tmp_path / "f.yml")
