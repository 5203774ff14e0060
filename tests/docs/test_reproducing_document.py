"""docs/reproducing.md: every table of a paper is there, with its script, its cells and its settings."""

from __future__ import annotations

import os
import re
from pathlib import Path

from document_reader import REPOSITORY, table_rows

from basicsr_quant.report.cells import expand, read_table

DOCUMENT = REPOSITORY / "docs" / "reproducing.md"
TABLES = REPOSITORY / "options" / "tables"


def test_tables_scripts_and_cells() -> None:
    rows = table_rows(DOCUMENT, "Reproducing the papers", "table")
    files = [Path(row[1].strip("`")) for row in rows]
    assert {file.stem for file in files} == {path.stem for path in TABLES.glob("*_table?.yml")}
    for row, file in zip(rows, files, strict=True):
        script = REPOSITORY / row[2].strip("`").removeprefix("bash ")
        assert os.access(script, os.X_OK) and f"table run {file.stem} " in script.read_text()
        assert int(row[3]) == len(list(expand(read_table(REPOSITORY / file), {})))
        assert f"\n## {row[0]}\n" in DOCUMENT.read_text()


def test_trainings_of_2dquant() -> None:
    cells = list(expand(read_table(TABLES / "2DQuant_table3.yml"), {}))
    trained = sum(cell.train is not None for cell in cells)
    assert f"{trained} trainings. The other {len(cells) - trained} cells" in DOCUMENT.read_text()


def test_settings_and_budgets_exist() -> None:
    """Those named in a section belong to a table of that section."""
    for section in re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE):
        named = [path for path in TABLES.glob("*.yml") if path.stem in section]
        text = section.replace(" key=value …", "")
        for key in re.findall(r"--set (\w+)=", text):
            assert section.startswith(("2DQuant", "BI-DiffSR", "PassionSR"))
            papers = [path for path in TABLES.glob("*_table?.yml") if f"reproduce_{path.stem}.sh" in section]
            assert all(key in read_table(path).settings for path in papers) and papers, key
        for budget in set(re.findall(r"--budget (\w+)", text)) - {"NAME"}:
            assert any(budget in read_table(path).budgets for path in named), budget
