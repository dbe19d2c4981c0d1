"""Separator, decimal sign and encoding of a CSV file, and its cells with the row numbers of a spreadsheet.

``csv.Sniffer`` guesses from characters that are frequent, and takes decimal commas for separators. Here a separator is
accepted by consistency: it splits most rows into as many cells as the header.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from datasets.inspection.columns import THOUSANDS
from datasets.inspection.findings import Finding, quoted, row_numbers
from datasets.readers.csv_files import Dialect
from utils.errors import UserError

SEPARATORS = (",", ";", "\t", "|")
SNIFFED_ROWS = 1000
FRACTION = {sign: re.compile(rf"[+-]?\d*{re.escape(sign)}\d+") for sign in (".", ",")}


@dataclass(frozen=True)
class RawTable:
    """Cells of a CSV file.

    Attributes:
        cells: (N, columns) stripped text; the index holds the spreadsheet rows.
        dialect: by which they were read.
        findings: on the file as a whole.
    """

    cells: pd.DataFrame
    dialect: Dialect
    findings: list[Finding]


def sniff(path: Path) -> Dialect:
    """The dialect that fits a file best.

    Raises:
        UserError: the file is not there or empty.
    """
    content = _content(path)
    encoding = sniff_encoding(content)
    candidates = [Dialect("tab" if mark == "\t" else mark, encoding=encoding) for mark in SEPARATORS]
    scores = [_consistency(_records(content, candidate, SNIFFED_ROWS)) for candidate in candidates]
    dialect = candidates[scores.index(max(scores))]  # of equals the first, which is the comma
    cells = [cell.strip() for record in _records(content, dialect, SNIFFED_ROWS)[1:] for cell in record]
    if dialect.separator == ",":
        cells = [cell for cell in cells if not THOUSANDS.fullmatch(cell)]
    counts = {sign: sum(bool(pattern.fullmatch(cell)) for cell in cells) for sign, pattern in FRACTION.items()}
    return replace(dialect, decimal="," if counts[","] > counts["."] else ".")


def sniff_encoding(content: bytes) -> str:
    """Encoding by byte order mark, else UTF-8 where it decodes, else that of Windows, else Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


def _consistency(records: list[list[str]]) -> tuple[float, int]:
    """Share of the rows with the commonest number of cells, and this number; (0, 0) of a single column."""
    widths = Counter(len(record) for record in records if record)
    if not widths:
        return 0.0, 0
    width, count = widths.most_common(1)[0]
    header = len(next(record for record in records if record))
    if width < 2 or (header == 1 and width < 3):
        return 0.0, 0
    return round(count / widths.total() + (header == width), 1), width


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"there is no table {path}: give the path of your CSV file")
    content = path.read_bytes()
    if not content.strip():
        raise UserError(f"{path} is empty: export the table again, as CSV with a header")
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{path} is a workbook of a spreadsheet program: save it as CSV")
    return content


def _records(content: bytes, dialect: Dialect, limit: int | None = None) -> list[list[str]]:
    """Cells of each row; none of an empty line."""
    text = content.decode(dialect.encoding, errors="replace")
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=dialect.delimiter, skipinitialspace=True)
    return [record for _, record in zip(range(limit or 2**62), reader)]


def read_raw(path: Path, dialect: Dialect | None = None) -> RawTable:
    """Read a CSV file whatever is wrong with it.

    Args:
        dialect: of a configuration; one that does not fit is reported, and the best one is used. None = sniff.

    Raises:
        UserError: there is no file, or it has no rows.
    """
    content, best = _content(path), sniff(path)
    if dialect is None:
        dialect, findings = best, [Finding("note", "file", f"read with {describe(best)}")]
    elif findings := _differences(content, dialect, best):
        dialect = replace(best, decimal=dialect.decimal)
    records = _records(content, dialect)
    width = Counter(len(record) for record in records if len(record) > 1).most_common(1)
    usual = width[0][0] if width else 1
    top = next((i for i, record in enumerate(records) if len(record) == usual), 0)
    if top:
        findings.append(
            Finding(
                "error",
                "file",
                f"the header is in row {top + 1}, after {top} other line{'s' if top > 1 else ''}",
                "delete the lines before the header",
                tuple(range(1, top + 1)),
            )
        )
    header = [name.strip() for name in records[top]]
    body = {number: record for number, record in enumerate(records[top + 1 :], top + 2) if any(map(str.strip, record))}
    if not body:
        raise UserError(f"{path} has a header and no rows: export the table again")
    findings += _shape_findings(header, body)
    names = _unique(header)
    rows = [(record + [""] * len(names))[: len(names)] for record in body.values()]
    raw = pd.DataFrame(rows, index=pd.Index(list(body)), columns=names, dtype=str)
    raw = raw.loc[:, [bool(name) for name in names]]
    cells = raw.apply(lambda column: column.str.strip())
    padded = {name: n for name in raw if (n := int((raw[name] != cells[name]).sum()))}
    if padded:
        counts = ", ".join(f"{name} ({n})" for name, n in padded.items())
        findings.append(Finding("note", "file", f"blanks around cells are ignored: {counts}"))
    return RawTable(cells, dialect, findings)


def describe(dialect: Dialect) -> str:
    """A dialect in words."""
    return f"separator '{dialect.separator}', decimal sign '{dialect.decimal}', encoding {dialect.encoding}"


def _differences(content: bytes, dialect: Dialect, best: Dialect) -> list[Finding]:
    """Errors of a configured dialect that does not fit the content."""
    findings = []
    try:
        content.decode(dialect.encoding)
    except (UnicodeError, LookupError):
        findings.append(
            Finding("error", "file", f"is not {dialect.encoding} text", f"set dataset.encoding: {best.encoding}")
        )
    if dialect.separator != best.separator and _consistency(_records(content, best, SNIFFED_ROWS))[1] > 1:
        text = f"cells are separated by '{best.separator}', not by '{dialect.separator}'"
        findings.append(Finding("error", "file", text, f"set dataset.separator: '{best.separator}'"))
    return findings


def _shape_findings(header: list[str], body: dict[int, list[str]]) -> list[Finding]:
    findings = []
    for what, is_wrong in (("more", int.__gt__), ("fewer", int.__lt__)):
        wrong = [row for row, record in body.items() if is_wrong(len(record), len(header))]
        if wrong:
            fix = "put cells that contain the separator in quotes, and complete short rows"
            text = f"{what} cells than the {len(header)} of the header"
            findings.append(Finding("error", "file", text, fix, row_numbers(wrong)))
    for name, count in Counter(header).items():
        if name and count > 1:
            text = f"{count} columns have this name"
            findings.append(Finding("error", name, text, "give each column a name of its own"))
    numbers = [name for name in header if FRACTION["."].fullmatch(name) or name.isdecimal()]
    if numbers:
        text = f"the header has the numbers {quoted(numbers)}"
        findings.append(Finding("warning", "file", text, "is the first row a header? If not, add one"))
    unnamed = [i for i, name in enumerate(header) if not name]
    filled = [i + 1 for i in unnamed if any(i < len(record) and record[i].strip() for record in body.values())]
    if filled:
        text = f"column {', '.join(map(str, filled))} has cells and no name, and is not used"
        findings.append(Finding("warning", "file", text, "name it in the header"))
    return findings


def _unique(header: list[str]) -> list[str]:
    """Column names, of which repeated ones get a number."""
    seen: Counter[str] = Counter()
    names = []
    for name in header:
        seen[name] += 1
        names.append(name if seen[name] == 1 or not name else f"{name} ({seen[name]})")
    return names
