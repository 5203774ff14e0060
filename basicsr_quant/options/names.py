"""Names in options that become names of files and folders."""

from __future__ import annotations

LONGEST_NAME = 160
"""Bytes in UTF-8; file systems allow 255, and a run adds beginnings and ends to its name."""


def file_name_problem(name: str) -> str:
    """Return why a text cannot be a part of the name of a file or folder, or an empty text if it can."""
    if any(part in name for part in ("/", "\\", "..")) or name == "." or not name.isprintable():
        return "no '/', '\\' or '..' in it"
    if len(name.encode()) > LONGEST_NAME:
        return f"no more than {LONGEST_NAME} bytes"
    return ""
