"""The verb ``docs``: writes the editor schema and the table of options from the types."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from basicsr_quant.io.atomic import write_text

logger = logging.getLogger("basicsr_quant")


def generated() -> dict[str, str]:
    """Return path (from the root of the repository) -> text of every generated file."""
    from basicsr_quant.options.documentation import documentation
    from basicsr_quant.options.schema import json_schema

    return {"options/schema.json": json_schema(), "docs/options.md": documentation()}


def docs(arguments: argparse.Namespace) -> int:
    """Write the generated files."""
    for name, text in generated().items():
        write_text(Path(arguments.root) / name, text)
        logger.info("wrote %s", Path(arguments.root) / name)
    return 0


def add_parser(subparsers: Any) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser("docs", help="write options/schema.json and docs/options.md from the option types")
    parser.add_argument("--root", default=".", metavar="DIR", help="root of the repository (default: here)")
    parser.set_defaults(func=docs)
