"""Marks of the tables in docs and README follow from the numbers beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.marks import mark, plain

ROOT = Path(__file__).parents[1]
# Tables of docs/reference show the papers' numbers, with other marks than ours.
PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").rglob("*.md")) if p.parent.name != "reference")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_marks_of_tables_follow_from_their_numbers(page: Path) -> None:
    """``python -m tests.marks docs/results/*.md README.md`` marks them again."""
    text = page.read_text()
    wrong = [old for old, new in zip(text.splitlines(), mark(text).splitlines(), strict=True) if old != new]
    assert not wrong, "these rows are marked otherwise than their numbers say"


def test_marks_by_hand() -> None:
    """Equal as shown is equal: all firsts are best, all holders of the next value second; upper bounds get no mark."""
    table = """\
| model | a | b | error | share |
|:--|--:|--:|--:|--:|
| one | **80.0 ± 1.0** | _3.00_ | 0.1 | 15 % |
| two | 80.0 ± 2.0 | 3.00 | 0.3 | 1 % |
| three | _79.9 ± 0.1_ | – | **0.2** | 2 % |
| upper† | 99.9 ± 0.0 | 4.00 | 0.0 | 9 % |
"""
    rows = [line.split("|")[2:-1] for line in mark(f"text\n\n{table}\nmore\n").splitlines()[4:8]]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [
        ["**80.0 ± 1.0**", "**3.00**", "**0.1**", "15 %"],
        ["**80.0 ± 2.0**", "**3.00**", "0.3", "1 %"],
        ["_79.9 ± 0.1_", "–", "_0.2_", "2 %"],
        ["99.9 ± 0.0", "4.00", "0.0", "9 %"],
    ]
    unmarked = table.replace("*", "").replace("_", "")
    assert mark(unmarked) == unmarked
    assert [plain(cell) for cell in ("**1.0**", " _2.0 ± 0.1_ ", "_name")] == ["1.0", "2.0 ± 0.1", "_name"]
