"""What the documents hold: fenced blocks, commands, links, files to add."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
WITH_COMMANDS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
DOCUMENTS = [*WITH_COMMANDS, *sorted(REPOSITORY.glob("*/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Command:
    """A command line of a bash block."""

    document: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: Path, language: str) -> list[str]:
    """Texts of the fenced blocks of a language."""
    return [match[2] for match in FENCE.finditer(document.read_text()) if match[1] == language]


def without_blocks(text: str) -> str:
    return FENCE.sub("", text)


def commands() -> list[Command]:
    """Every command of every bash block, without variables in front."""
    found = []
    for document in WITH_COMMANDS:
        text = document.read_text()
        for match in FENCE.finditer(text):
            if match[1] != "bash":
                continue
            first = text[: match.start(2)].count("\n") + 1
            for offset, line in enumerate(match[2].splitlines()):
                words = shlex.split(line, comments=True)
                if words:
                    found.append(Command(document.name, first + offset, tuple(words)))
    return found


def table_rows(document: Path, heading: str, first: str) -> list[list[str]]:
    """Cells of the rows of the table under a heading whose first column is called ``first``."""
    section = re.split(rf"^#+ {re.escape(heading)}\n", document.read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    lines = section.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def error_fragments(rows: list[list[str]]) -> list[str]:
    """What the code must say of each message of a table of errors: its longest part between values."""
    messages = [row[0].strip("`") for row in rows]
    return [max(re.split(r"…|\d|'[^']*'", message), key=len).strip() for message in messages]


def package_source() -> str:
    """The text of all modules, with messages that go on in the next line joined."""
    source = "".join(path.read_text() for path in sorted((REPOSITORY / "basicsr_quant").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", source)


def links(document: Path) -> list[str]:
    """Targets of links that stay within the repository."""
    return [link for link in LINK.findall(without_blocks(document.read_text())) if "://" not in link]


def anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def new_files(document: Path) -> dict[str, str]:
    """Path -> text of the files that a document tells its reader to make."""
    pattern = re.compile(r"^New file `([^`]+)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return dict(pattern.findall(document.read_text()))


def new_lines(document: Path) -> dict[str, str]:
    """Table of the registry -> line that a document tells its reader to add."""
    return dict(re.findall(r"^New line of the table `(\w+)`: `(.*)`$", document.read_text(), re.MULTILINE))
