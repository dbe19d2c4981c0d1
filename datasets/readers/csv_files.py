"""CSV files -> cells as text, for every separator, decimal sign and encoding."""

from __future__ import annotations

import codecs
import csv
import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from utils.errors import UserError, first_line


@dataclass(frozen=True)
class Dialect:
    """How the cells of a CSV file are written.

    Attributes:
        separator: one character between cells, or the word ``tab``.
        decimal: decimal sign, ``.`` or ``,``.
        encoding: a codec of Python, for example ``latin-1``; ``utf-8-sig`` reads UTF-8 with and without a byte order
            mark.

    Raises:
        UserError: an impossible value.
    """

    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8-sig"

    def __post_init__(self) -> None:
        if self.separator != "tab" and (len(self.separator) != 1 or self.separator in "\r\n\"'."):
            raise UserError(f"dataset.separator={self.separator!r}: must be one character such as ',' or ';', or tab")
        if self.decimal not in (".", ","):
            raise UserError(f"dataset.decimal={self.decimal!r}: must be '.' or ','")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise UserError(
                f"dataset.encoding={self.encoding}: Python knows no such encoding; utf-8-sig, latin-1 and cp1252 are "
                "common ones"
            ) from None

    @classmethod
    def of(cls, separator: str | None, decimal: str | None, encoding: str | None) -> Dialect:
        """The dialect of these options; None stands for the default."""
        given = {"separator": separator, "decimal": decimal, "encoding": encoding}
        return cls(**{key: str(value) for key, value in given.items() if value is not None})

    @property
    def delimiter(self) -> str:
        return "\t" if self.separator == "tab" else self.separator

    def numbers(self, cells: pd.Series) -> pd.Series:
        """Numbers of text cells, NaN where a cell is not a number (with a decimal comma: or has a point)."""
        if self.decimal == ",":
            cells = cells.where(~cells.str.contains(".", regex=False), "").str.replace(",", ".", regex=False)
        return pd.to_numeric(cells, errors="coerce")

    def reading(self) -> dict[str, Any]:
        """Arguments of :func:`pandas.read_csv` by which every cell is text."""
        return {
            "dtype": str,
            "keep_default_na": False,
            "skipinitialspace": True,
            "encoding": self.encoding,
            "sep": self.delimiter,
        }

    def unreadable(self, path: Path, error: Exception) -> UserError:
        """The message that a file cannot be read."""
        if isinstance(error, UnicodeError):
            fix = "set dataset.encoding, for example to cp1252 (Windows) or latin-1"
        elif self.separator == ",":
            fix = "give a comma-separated table, or set dataset.separator"
        else:
            fix = f"dataset.separator={self.separator!r} may not be that of this table"
        return UserError(f"{path} cannot be read as CSV ({first_line(error)}): {fix}")


def read_csv(path: Path, header_only: bool = False, dialect: Dialect | None = None) -> pd.DataFrame:
    """All cells as text, stripped; column names stripped.

    Raises:
        UserError: the file cannot be read as a table, or repeats a column name.
    """
    dialect = dialect or Dialect()
    options = dialect.reading()
    check_not_empty(path)
    try:
        # pandas would append a number to the second of two equal names.
        names = pd.read_csv(path, header=None, nrows=1, **options).iloc[0].str.strip()
        frame = pd.read_csv(path, nrows=0 if header_only else None, low_memory=False, **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
        raise dialect.unreadable(path, error) from None
    if repeated := [name for name, n in Counter(names).items() if n > 1 and name]:
        raise UserError(
            f"{path} has {len(repeated)} column names more than once (the first is '{repeated[0]}'; spaces around "
            "names do not count): give each column a name of its own"
        )
    frame.columns = [str(c).strip() for c in frame.columns]
    if header_only:
        return frame
    count_rows(path, dialect)
    return frame.apply(lambda column: column.str.strip())


def read_chunks(path: Path, size: int | None = None, dialect: Dialect | None = None) -> Iterator[pd.DataFrame]:
    """:func:`read_csv` in frames of ``size`` rows, None = one; the index is the row number that a spreadsheet shows.

    Raises:
        UserError: it cannot be read as a table, names a column twice, or has no rows.
    """
    dialect, start = dialect or Dialect(), 2
    names = list(read_csv(path, header_only=True, dialect=dialect).columns)
    if len(names) == 1 and any(mark in names[0] for mark in ",;\t|"):
        raise UserError(
            f"{path} has one column, '{names[0]}': its cells must be separated by '{dialect.separator}', as those "
            "of the training table are"
        )
    count_rows(path, dialect)
    try:
        chunks = pd.read_csv(path, chunksize=size or 2**62, low_memory=False, **dialect.reading())
        for frame in chunks:
            frame.columns = names
            frame.index = pd.RangeIndex(start, start + len(frame))
            start += len(frame)
            yield frame.apply(lambda column: column.str.strip())
    except (pd.errors.ParserError, UnicodeError) as error:
        raise dialect.unreadable(path, error) from None


def check_not_empty(path: Path) -> None:
    """
    Raises:
        UserError: the file has no content.
    """
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: give a header and, below it, one line per row")


def count_rows(path: Path, dialect: Dialect) -> int:
    """Number of rows below the header. Pandas would fill up short rows, and take the first column of rows that are all
    longer than the header for their names.

    Raises:
        UserError: no rows, or rows with fewer or more cells than the header; names their number and the first one as a
            spreadsheet numbers it.
    """
    check_not_empty(path)
    csv.field_size_limit(2**31 - 1)
    rows = 0
    other: dict[str, list[int]] = {"shorter": [], "longer": []}
    try:
        with path.open(encoding=dialect.encoding, newline="") as stream:
            lines = csv.reader(stream, delimiter=dialect.delimiter, skipinitialspace=True)
            width = len(next(lines, []))
            for number, cells in enumerate(lines, 2):
                rows += bool(cells)  # an empty line is no row
                if cells and len(cells) != width:
                    other["shorter" if len(cells) < width else "longer"].append(number)
    except (csv.Error, UnicodeError) as error:
        raise dialect.unreadable(path, error) from None
    if not rows:
        raise UserError(f"{path} has a header and no rows: add the rows below it")
    for kind, numbers in other.items():
        if numbers:
            raise UserError(
                f"{path}: {len(numbers)} rows of {rows} are {kind} than the header ({width} cells), the first in row "
                f"{numbers[0]}: complete them, or put quotation marks around cells that hold the separator"
            )
    return rows


def check_columns(frame: pd.DataFrame, needed: Sequence[str], path: Path) -> None:
    """Check that a table has some columns.

    Raises:
        UserError: names the absent columns and the nearest names that the table has.
    """
    absent = [c for c in dict.fromkeys(needed) if c not in frame.columns]
    if absent:
        nearest = difflib.get_close_matches(absent[0], list(frame.columns), 1)
        separators = [mark for mark in ";\t|," if len(frame.columns) == 1 and mark in frame.columns[0]]
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"it has {', '.join(frame.columns[:20])}"
        if separators:
            mark = separators[0].replace("\t", "tab")
            hint = f"it has the one column '{frame.columns[0]}': set dataset.separator='{mark}'"
        raise UserError(f"{path} lacks {len(absent)} of {len(set(needed))} columns: {', '.join(absent)}; {hint}")
