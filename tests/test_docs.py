"""What documents say was measured stands in the results."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_TABLE = re.compile(r"\]\((\S*results/\w+\.md)\)[^|]*?\n\n((?:\|.*\n)+)")
"""A page of results, and the table that follows the link to it."""


def tables_of(text: str) -> list[list[list[str]]]:
    """Return the cells of every table, row by row, its header first, the dashes left out."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        found.append([rows[0], *rows[2:]])
    return found


def is_told(told: list[list[str]], measured: list[list[str]]) -> bool:
    """Return whether every row is one of the measured ones, some columns left out."""
    if not set(told[0]) <= set(measured[0]):
        return False
    places = [measured[0].index(column) for column in told[0]]
    return all(row in [[its[p] for p in places] for its in measured[1:]] for row in told[1:])


@pytest.mark.parametrize(("name", "num"), [("sequences.md", 3)])
def test_every_table_of_results_has_their_rows(name, num) -> None:
    folder = ROOT / "docs"
    found = _TABLE.findall((folder / name).read_text())
    assert len(found) == num
    for page, text in found:
        (told,) = tables_of(text)
        measured = tables_of((folder / page).read_text())
        assert len(told) > 1
        assert any(is_told(told, table) for table in measured), page
