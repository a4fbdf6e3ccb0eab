"""The tables of the pages: every row has as many cells as its head, so that none is cut off where the page is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
CELL = re.compile(r"(?<!\\)\|")


def uneven_rows(text: str) -> list[str]:
    """Return the rows of the tables in a Markdown text that have other numbers of cells than the row above them."""
    out, before = [], 0
    for line in text.splitlines():
        cells = len(CELL.findall(line)) if line.startswith("|") else 0
        if cells and before and cells != before:
            out.append(line)
        before = cells
    return out


def test_an_uneven_row_is_found() -> None:
    assert uneven_rows("| a | b |\n|---|---|\n| 1 | x \\| y |\n| 1 | 2 | 3 |\n\n| c |\n") == ["| 1 | 2 | 3 |"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_rows_of_a_table_have_as_many_cells(page: Path) -> None:
    assert uneven_rows(page.read_text()) == []
