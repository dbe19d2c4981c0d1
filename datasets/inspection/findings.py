"""One remark on a table, with the rows as a spreadsheet numbers them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """A remark on a table.

    Attributes:
        level: ``error`` (stage prepare refuses it), ``warning`` (results may be wrong) or ``note``.
        place: column, or ``file``, ``images``, ``splits``.
        text: what is wrong.
        fix: what to do about it.
        rows: that it concerns, as a spreadsheet numbers them: the header is row 1.
    """

    level: str
    place: str
    text: str
    fix: str = ""
    rows: tuple[int, ...] = ()

    def line(self) -> str:
        where = f" ({rows_text(self.rows)})" if self.rows else ""
        return f"{self.place}: {self.text}{where}{f'; {self.fix}' if self.fix else ''}"


def rows_text(rows: Sequence[int], limit: int = 8) -> str:
    """``row 5``, ``rows 5, 9 and 12`` or, of many, ``40 rows: 5, 9, ...``."""
    shown = [str(row) for row in rows[:limit]]
    if len(rows) > limit:
        return f"{number_of(len(rows), 'row')}: {', '.join(shown)}, ..."
    last = shown.pop()
    return f"rows {', '.join(shown)} and {last}" if shown else f"row {last}"


def row_numbers(selected: Any) -> tuple[int, ...]:
    """Spreadsheet rows of a boolean series, or of an iterable of row labels."""
    labels: Iterable[Any] = selected.index[selected] if isinstance(selected, pd.Series) else selected
    return tuple(int(label) for label in labels)


def number_of(count: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def quoted(values: Iterable[str], limit: int = 6) -> str:
    """The values in quotes, with the number of those that are not shown."""
    listed = [f"'{value}'" for value in values]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return f"{', '.join(listed[:limit])}{more}"
