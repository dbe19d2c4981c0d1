"""Best and second-best marks of the result tables in docs and README.

``python -m tests.marks docs/results/*.md README.md`` marks the files again after numbers changed; a test checks that
this changes nothing. The rule is that of :func:`trainers.report.tables.table`: equal as shown is equal, all firsts
are **best**, all holders of the next value _second_; models that use labels (†) and published rows are never marked.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RULE = re.compile(r"\|[:\- |]+\|$")
MARKED = re.compile(r"\*\*(.+)\*\*|_(\d.*)_")
VALUE = r"\d+(?:\.\d+)?(?:e-\d+)?"
NUMBER = re.compile(rf"({VALUE})(?: ± {VALUE})?")
LOWER = re.compile(
    r"<!-- table .*\bmetric=(?:nll|brier|ece|classwise_ece)\b"
)  # lower is better in the table that follows


def plain(cell: str) -> str:
    """A cell without its mark."""
    text = cell.strip()
    return next((inner for inner in match.groups() if inner), text) if (match := MARKED.fullmatch(text)) else text


def mark(text: str) -> str:
    """A Markdown document with the marks of all its marked tables as they follow from the numbers shown."""
    lines = text.splitlines(keepends=True)
    start = 0
    while start < len(lines) - 1:
        end = start
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        if end - start > 2 and RULE.match(lines[start + 1].rstrip()):
            lines[start:end] = mark_table(
                lines[start:end], bool(LOWER.match("".join(lines[max(0, start - 2) : start])))
            )
        start = max(end, start + 1)
    return "".join(lines)


def mark_table(lines: list[str], is_lower_better: bool = False) -> list[str]:
    """A table (head, rule, rows) with its marks; unmarked tables and those of printed counts stay as they are."""
    head, rows = lines[0].split("|"), [line.split("|") for line in lines[2:]]
    is_marked = any(MARKED.fullmatch(cell.strip()) for row in rows for cell in row[2:-1])
    if not is_marked or "printed" in lines[0]:
        return lines
    for k in range(2, len(head) - 1):
        # A heading like "error from 1 view | 4" holds for the columns after it too.
        is_lower_better = is_lower_better or head[k].strip().startswith("error")
        numbers = {
            i: float(match[1])
            for i, row in enumerate(rows)
            if "†" not in row[1] and (match := NUMBER.fullmatch(plain(row[k])))
        }
        ranked = sorted(set(numbers.values()), reverse=not is_lower_better)
        for i, value in numbers.items():
            form = "**{}**" if value == ranked[0] else "_{}_" if value == ranked[1] else "{}"
            cell = form.format(plain(rows[i][k]))
            is_padded = rows[i][k].endswith("  ")
            rows[i][k] = f" {cell.ljust(len(rows[i][k]) - 2) if is_padded else cell} "
    return [*lines[:2], *("|".join(row) for row in rows)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(mark(path.read_text()))
