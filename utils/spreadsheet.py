"""CSV files that people open in a spreadsheet, which would run a text that starts with ``=`` as a formula."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

# What a spreadsheet runs, with the quotes that an earlier guard() has put before it; numbers are none.
FORMULA = re.compile(r"'*(?:[=@\t\r]|[+-](?!\.?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?$)).+", re.DOTALL)


def guard(value: Any) -> Any:
    """The text with ``'`` before it if a spreadsheet would run it; everything else as it is."""
    return f"'{value}" if isinstance(value, str) and FORMULA.fullmatch(value) else value


def unguard(value: Any) -> Any:
    """Undo :func:`guard`."""
    if isinstance(value, str) and value.startswith("'") and FORMULA.fullmatch(value[1:]):
        return value[1:]
    return value


def guarded(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with guarded texts and heads of columns."""
    frame = frame.rename(columns=guard)
    for number, kind in enumerate(frame.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            frame.isetitem(number, [guard(value) for value in frame.iloc[:, number]])
    return frame


def write_table(frame: pd.DataFrame, target: Path | TextIO) -> None:
    """Write a table as CSV, with guarded texts."""
    guarded(frame).to_csv(target, index=False)
