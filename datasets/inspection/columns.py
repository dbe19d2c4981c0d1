"""What a column holds, and which of its cells do not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import pandas as pd

from datasets.inspection.findings import Finding, quoted, row_numbers
from utils.files import natural_key

# Compared in lower case.
# fmt: off
MISSING_MARKS = (
    "na", "n/a", "n.a.", "nan", "null", "none", "k.a.", "unknown", "unbekannt", "missing", "?", "-", "--", ".",
)
# fmt: on
# Words of one meaning; the levels of a column are merged where two of them occur.
SYNONYMS = (
    ("female", "f", "w", "woman", "weiblich"),
    ("male", "m", "man", "männlich"),
    ("yes", "y", "ja", "j", "true"),
    ("no", "n", "nein", "false"),
    ("left", "l", "links"),
    ("right", "r", "rechts"),
)
MEANING = {word: words[0] for words in SYNONYMS for word in words}
NUMBERS = {sign: re.compile(rf"[+-]?(\d+{s}?\d*|{s}\d+)([eE][+-]?\d+)?") for sign, s in ((".", r"\."), (",", ","))}
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")  # 1,234: in an English table no decimal comma
WITH_MORE = re.compile(
    # 6,5 mm; <5; 1.234,5; 63 J.
    r"[<>≤≥~=]*\s*[+-]?\d[\d.,' ]*\s*([A-Za-zµμ°%²³/^.]{1,10})?"
)
DAY = r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})"
DATE = re.compile(rf"({DAY})([ T]\d{{1,2}}:\d{{2}}(:\d{{2}})?.*)?")
GROUP_NAME = re.compile(r"patient|subject|person|proband|lesion|participant|specimen", re.IGNORECASE)
IDENTIFIER_NAME = re.compile(r"(^|[_\W])(id|nr|no|num|number|index|key|uid|row)$|(Id|ID|Nr|No)$", re.IGNORECASE)
SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MAX_LEVELS = 50  # of a categorical column
MAX_CODES = 8  # whole numbers that count as categories
MIN_IDENTIFIED = 20  # rows from which on unique cells count as identifiers


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        kind: empty | constant | identifier | group | date | split | continuous | categorical | text.
        known: cells that are not missing.
        missing: share of missing cells.
        marks: spellings of missing cells in the column that are not listed as such.
        odd: spreadsheet row -> cell, of a continuous column the cells that are no number.
    """

    name: str
    kind: str
    known: pd.Series
    missing: float
    marks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    odd: dict[int, str] = field(default_factory=dict)


def matches(cells: pd.Series, *patterns: re.Pattern[str]) -> pd.Series:
    """Whether each cell is matched by any of the patterns, as a whole; equal cells are looked at once."""
    fitting = {cell for cell in cells.unique() if any(pattern.fullmatch(cell) for pattern in patterns)}
    return cells.isin(fitting)


def describe_column(cells: pd.Series, decimal: str, missing_values: Sequence[str], is_numeric: bool = False) -> Column:
    """Kind and irregular cells of a column.

    Args:
        cells: stripped text, indexed by spreadsheet rows.
        missing_values: cells that mean missing, besides empty ones.
        is_numeric: it is to hold numbers, whatever it looks like.
    """
    gaps = cells.isin(["", *missing_values])
    is_mark = cells.str.casefold().isin(MISSING_MARKS) & ~gaps
    marks = {value: row_numbers(cells == value) for value in dict.fromkeys(cells[is_mark])}
    known = cells[~gaps & ~is_mark]
    missing = 1 - len(known) / len(cells)
    kind = _kind(str(cells.name), known)
    fits = matches(known, NUMBERS[decimal])
    odd = known[~fits] if is_numeric or kind == "continuous" else known[:0]
    return Column(str(cells.name), kind, known, missing, marks, dict(zip(row_numbers(odd.index), odd)))


def _kind(name: str, known: pd.Series) -> str:
    if not len(known):
        return "empty"
    distinct = known.nunique()
    if distinct == 1:
        return "constant"
    share = distinct / len(known)
    if matches(known, DATE).mean() >= 0.8:
        return "date"
    if known.str.casefold().isin(SPLIT_OF).all():
        return "split"
    whole = known.str.fullmatch(r"[+-]?\d+")
    is_many = len(known) > MIN_IDENTIFIED
    if _is_numeric(known):
        if GROUP_NAME.search(name) and whole.all() and share > 0.1:
            return "group" if share < 0.9 else "identifier"
        if is_many and whole.all() and share > 0.9 and (IDENTIFIER_NAME.search(name) or _is_counted(known)):
            return "identifier"
        return "categorical" if whole.all() and distinct <= MAX_CODES else "continuous"
    words = known.str.split().str.len().mean()
    if is_many and share > 0.9:
        return "text" if words >= 3 else "identifier"
    coded = known.str.fullmatch(r"(?=.*\d)[\w\-./]+").mean() > 0.9
    if is_many and distinct > MAX_CODES and (GROUP_NAME.search(name) or coded) and share > 0.1:
        return "group"
    return "categorical" if distinct <= MAX_LEVELS and share <= 0.5 else "text" if words >= 3 else "categorical"


def _is_numeric(known: pd.Series) -> bool:
    """Whether most cells are numbers, or numbers with the same unit."""
    numeric = matches(known, *NUMBERS.values())
    with_more = matches(known, WITH_MORE)
    if (numeric | with_more).mean() < 0.8:
        return False
    units = known[~numeric].str.extract(r"([^\d\s.,]+)$")[0].value_counts()
    return bool(numeric.mean() >= 0.5 or (len(units) and units.iloc[0] >= 0.8 * (~numeric).sum()))


def _is_counted(known: pd.Series) -> bool:
    """Whether whole numbers follow one another, or all have at least five digits."""
    numbers = known.astype(float)
    return bool((numbers.diff().iloc[1:] == 1).mean() > 0.9 or (known.str.len() >= 5).all())


def spelling_groups(values: pd.Series | Sequence[str]) -> list[Counter[str]]:
    """Values that differ only in case, blanks, hyphens or abbreviation, counted; the commonest group first."""
    groups: dict[str, Counter[str]] = {}
    for value, count in Counter(map(str, values)).items():
        groups.setdefault(spelling_key(value), Counter())[value] = count
    return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: -group.total())


def spelling_key(value: str) -> str:
    """What all spellings of a value have in common."""
    key = re.sub(r"\s+" if re.fullmatch(r"[\W\d_]*", value) else r"[\s_\-]+", "", value.casefold())
    return MEANING.get(key, key)


def spelling_keys(cells: pd.Series) -> pd.Series:
    """The :func:`spelling_key` of each cell."""
    return cells.map({cell: spelling_key(cell) for cell in cells.unique()})


def merged_levels(values: pd.Series | Sequence[str]) -> dict[str, list[str]]:
    """Level -> its spellings, both commonest first, the levels sorted by name.

    A level has the name of its commonest spelling.
    """
    groups: dict[str, Counter[str]] = {}
    for value, count in Counter(map(str, values)).items():
        groups.setdefault(spelling_key(value), Counter())[value] = count
    named = {group.most_common(1)[0][0]: [value for value, _ in group.most_common()] for group in groups.values()}
    return {name: named[name] for name in sorted(named, key=natural_key)}


def spelling_findings(name: str, known: pd.Series, fix: str, level: str = "warning") -> list[Finding]:
    """Levels that differ only in their spelling, and rare ones that look like misspellings of frequent ones."""
    findings = []
    for group in spelling_groups(known):
        common = group.most_common(1)[0][0]
        counts = ", ".join(f"'{value}' ({count})" for value, count in group.most_common())
        rows = row_numbers(known.isin(set(group) - {common}))
        findings.append(Finding(level, name, f"spellings of one value: {counts}", fix, rows))
    keys = spelling_keys(known)
    sizes = keys.value_counts()
    for rare, n in sizes.items():
        for frequent in sizes.index[sizes >= 10 * n] if len(rare) > 4 else ():
            if _is_misspelled(rare, frequent):
                rows = row_numbers(keys == rare)
                text = f"'{known[rows[0]]}' may be a misspelling of '{known[keys == frequent].iloc[0]}'"
                findings.append(Finding("note", name, text, rows=rows))
    return findings


def _is_misspelled(word: str, other: str) -> bool:
    """Whether two words differ in a letter or two, and in no digit."""
    return SequenceMatcher(None, word, other).ratio() > 0.85 and re.sub(r"\D", "", word) == re.sub(r"\D", "", other)


def number_findings(column: Column, decimal: str, level: str) -> list[Finding]:
    """Cells of a continuous column that are no numbers, by what is wrong with them."""
    other = "," if decimal == "." else "."
    kinds: dict[str, list[int]] = {}
    for row, cell in column.odd.items():
        if decimal == "." and THOUSANDS.fullmatch(cell):
            kinds.setdefault("',' between thousands, or a decimal comma", []).append(row)
        elif NUMBERS[other].fullmatch(cell):
            kinds.setdefault(f"decimal sign '{other}' instead of '{decimal}'", []).append(row)
        elif WITH_MORE.fullmatch(cell):
            kinds.setdefault("unit or sign beside the number", []).append(row)
        else:
            kinds.setdefault("not a number", []).append(row)
    findings = []
    for what, rows in kinds.items():
        examples = quoted(dict.fromkeys(column.odd[row] for row in rows), 3)
        whole = len(rows) > len(column.known) / 2 and "decimal" in what
        fix = f"set dataset.decimal: '{other}'" if whole else "correct them, or list them in dataset.missing_values"
        text = f"{what}, for example {examples}"
        findings.append(Finding(level, column.name, text, fix, row_numbers(rows)))
    return findings


def mark_findings(column: Column, level: str) -> list[Finding]:
    """Cells that seem to say 'missing'."""
    if not column.marks:
        return []
    rows = sorted(row for rows in column.marks.values() for row in rows)
    text = f"seems to mean 'missing': {quoted(column.marks)}"
    return [Finding(level, column.name, text, "list them in dataset.missing_values", row_numbers(rows))]
