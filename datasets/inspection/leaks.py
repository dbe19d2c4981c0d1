"""Columns that reveal the label, rows and images that stand twice, and the class counts of the splits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from datasets.inspection.columns import NUMBERS, Column, matches, spelling_keys
from datasets.inspection.findings import Finding, number_of, quoted, row_numbers
from datasets.inspection.layout import FileColumn, Layout, Target
from datasets.splits import draw_folds, draw_split
from utils.errors import UserError

SPLITS = ("train", "val", "test")
GIVES_AWAY = 0.9  # share of the label's entropy
INFORMATIVE = 0.6
COMMON = 0.05  # share of the rows from which on a level that has one label is a warning
NOT_INPUT = "take it out of the inputs, unless it is known before the label"
MAX_COMPARED = 300  # levels of a column, beyond which chance agreement hides everything
BINS = 20  # quantiles of a continuous column


def information(cells: Sequence[Any] | np.ndarray, target: Sequence[Any] | np.ndarray) -> float:
    """Mutual information of two discrete variables as a share of the second's entropy, corrected for chance.

    ``(I(x, y) - E) / (H(y) - E)`` with the expectation E of shuffled cells, as in the adjusted mutual information: 1
    where the cells determine the target, about 0 where they are independent, however many levels there are.
    """
    from scipy.stats import entropy
    from sklearn.metrics import mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

    levels, codes = np.unique(np.asarray(cells, dtype=str), return_inverse=True)
    classes, labels = np.unique(np.asarray(target, dtype=str), return_inverse=True)
    if len(levels) < 2 or len(classes) < 2:
        return 0.0
    table = contingency_matrix(labels, codes, sparse=True).astype(np.int64)
    expected = expected_mutual_information(table, len(labels))
    most = float(entropy(np.bincount(labels)))
    return min(1.0, float((mutual_info_score(labels, codes) - expected) / max(most - expected, 1e-12)))


def discretised(column: Column, cells: pd.Series, decimal: str) -> pd.Series:
    """Cells as few levels: merged spellings, or quantiles of numbers; missing cells are a level."""
    if column.kind != "continuous":
        return spelling_keys(cells)
    fits = matches(cells, NUMBERS[decimal])
    numbers = pd.to_numeric(cells[fits].str.replace(",", "."))
    if numbers.nunique() > BINS:
        numbers = pd.qcut(numbers, BINS, labels=False, duplicates="drop")
    return numbers.astype(str).reindex(cells.index, fill_value="other")


def leak_findings(
    columns: Sequence[Column], cells: pd.DataFrame, target: pd.Series, decimal: str
) -> tuple[list[Finding], dict[str, float], set[str]]:
    """Columns that determine the label, or nearly.

    Args:
        columns: that are, or may become, inputs.
        target: class names, indexed by the spreadsheet rows that have one.

    Returns:
        Findings, the share of the label's information in each column that was compared, and the columns with a frequent
        level that has one label only.
    """
    findings, shares, suspects = [], {}, set()
    usual = target.value_counts(normalize=True)
    for column in columns:
        if column.kind not in ("categorical", "continuous", "group"):
            continue
        levels = discretised(column, cells.loc[target.index, column.name], decimal)
        if levels.nunique() > min(MAX_COMPARED, len(levels) / 2):
            continue
        shares[column.name] = share = information(levels, target)
        if share >= GIVES_AWAY:
            text = f"gives the label away: it holds {share:.0%} of the label's information"
            findings.append(Finding("warning", column.name, text, NOT_INPUT))
            continue
        if share >= INFORMATIVE:
            text = f"holds {share:.0%} of the label's information"
            findings.append(Finding("note", column.name, text, "is it known before the label?"))
        if column.kind == "categorical":
            for _, rows in target.groupby(levels):
                only, level = rows.iloc[0], cells.loc[rows.index[0], column.name]
                if rows.nunique() == 1 and usual[only] ** len(rows) < 1e-9:
                    text = f"may follow from the label: all {len(rows):,} rows with '{level}' have the label '{only}'"
                    is_common = len(rows) >= COMMON * len(target)
                    findings.append(Finding("warning" if is_common else "note", column.name, text, NOT_INPUT))
                    suspects |= {column.name} if is_common else set()
    return findings, shares, suspects


def text_findings(columns: Sequence[Column], target: pd.Series, layout: Layout) -> list[Finding]:
    """Texts that contain the name of their class, apart from the words that a mask token replaces."""
    words = "|".join(map(re.escape, layout.mask_words))
    masked = re.compile(rf"\b(?:{words})\w*", re.IGNORECASE) if words else None
    findings = []
    for column in columns:
        texts = column.known[column.known.index.isin(target.index)]
        if masked is not None:
            texts = texts.str.replace(masked, " ", regex=True)
        named = [row for row, text in texts.items() if str(target[row]).casefold() in text.casefold()]
        if len(named) > COMMON * len(texts):
            text = "text contains the name of its class"
            fix = f"list the words in {layout.option(column.name)}.mask_words, or leave the column out"
            findings.append(Finding("warning", column.name, text, fix, row_numbers(named)))
    return findings


# ----------------------------------------------------------------------------------------------------------- duplicates


def duplicate_findings(cells: pd.DataFrame) -> list[Finding]:
    """Rows that are equal.

    Args:
        cells: without the columns that number the rows.
    """
    again = cells.duplicated()
    if not again.any():
        return []
    fix = "remove the copies: they weigh double, and may be in several splits"
    return [Finding("warning", "file", "repeats an earlier row", fix, row_numbers(again))]


def same_file_findings(
    column: FileColumn, digests: Mapping[int, str], cells: pd.DataFrame, target: pd.Series, group: pd.Series | None
) -> list[Finding]:
    """Rows whose files have the same content, above all with other labels or groups.

    Args:
        digests: spreadsheet row -> content of the file.
        cells: without the columns that number the rows.
        group: of each row, None = there is none.
    """
    findings, equal, named, noun = [], cells.duplicated(keep=False), cells[column.column], column.noun
    content = pd.Series(digests, dtype=object)
    pairs = content.groupby(content).filter(lambda rows: len(rows) > 1)
    copies: list[int] = []
    grouped: list[int] = []
    clashing: list[int] = []
    crossing: list[int] = []
    for _, rows in pairs.groupby(pairs):
        labels = target[target.index.isin(rows.index)]
        if labels.nunique() > 1:
            clashing += list(rows.index)
        if group is not None and group[rows.index].nunique() > 1:
            crossing += list(rows.index)
        elif not equal[rows.index].all():
            (copies if group is None else grouped).extend(rows.index)

    def shown(rows: Sequence[int]) -> str:
        return quoted(dict.fromkeys(named[sorted(rows)]), 4)

    if copies:
        text = f"same {noun} as another row: {shown(copies)}"
        fix = "remove the copies, or keep them in one split with dataset.group"
        findings.append(Finding("warning", column.place, text, fix, row_numbers(sorted(copies))))
    if grouped:
        text = f"same {noun} as another row of the same '{group.name}'"  # type: ignore[union-attr]
        findings.append(Finding("note", column.place, text, rows=row_numbers(sorted(grouped))))
    if clashing:
        text = f"same {noun} as a row of another label"
        findings.append(Finding("warning", column.place, text, "correct the labels", row_numbers(sorted(clashing))))
    if crossing:
        text = f"same {noun} as a row of another '{group.name}': {shown(crossing)}"  # type: ignore[union-attr]
        fix = f"correct the groups: such {column.nouns} may be in several splits"
        findings.append(Finding("warning", column.place, text, fix, row_numbers(sorted(crossing))))
    return findings


# --------------------------------------------------------------------------------------------------------------- splits


@dataclass(frozen=True)
class Division:
    """How rows are divided.

    Attributes:
        splits: split -> spreadsheet rows; empty where no division is possible.
        counts: split -> class -> rows.
        findings: what is wrong with it.
    """

    splits: dict[str, list[int]]
    counts: dict[str, dict[str, int]]
    findings: list[Finding]

    @property
    def is_complete(self) -> bool:
        """Whether every class is in every split."""
        return bool(self.counts) and all(n > 0 for split in self.counts.values() for n in split.values())


def divide(target: Target, group: pd.Series | None, split_cells: pd.Series | None, how: Mapping[str, Any]) -> Division:
    """Divide rows as stage prepare does.

    Args:
        group: cell of every row of the table, None = rows are divided one by one.
        split_cells: of the column that names the split of each row, None = drawn.
        how: the keys of the configuration.
    """
    rows, findings = target.rows, []
    if split_cells is not None and how.get("fold") is None:
        values = {s: [str(v) for v in np.atleast_1d(v)] for s, v in (how.get("split_values") or {}).items()}
        split_of = split_cells[rows].map({value: split for split, listed in values.items() for value in listed})
        if split_of.isna().any():
            text = f"values name no split: {quoted(dict.fromkeys(split_cells[rows][split_of.isna()]))}"
            unknown = row_numbers(split_of.isna())
            findings.append(Finding("error", str(split_cells.name), text, "set dataset.split_values", unknown))
        parts: Sequence[np.ndarray] = [np.flatnonzero(split_of == split) for split in SPLITS]
    else:
        try:
            parts = _draw(target, None if group is None else group[rows].to_numpy(str), how)
        except UserError as error:
            text, _, fix = str(error).rpartition(": ")
            return Division({}, {}, [Finding("error", "splits", text or fix, fix if text else "")])
    counts = {split: dict(zip(target.names, target.count(part))) for split, part in zip(SPLITS, parts)}
    for split, part in zip(SPLITS, parts):
        lacking = [name for name, n in counts[split].items() if n == 0]
        if not len(part):
            findings.append(Finding("warning", "splits", f"no rows in split '{split}'"))
        elif lacking:
            level, fix = ("warning", "their scores there are undefined")
            if split == "train":
                level, fix = "error", "they cannot be learned: leave them out, or divide the rows differently"
            findings.append(Finding(level, "splits", f"no row of {quoted(lacking)} in split '{split}'", fix))
    return Division({split: [int(row) for row in rows[part]] for split, part in zip(SPLITS, parts)}, counts, findings)


def _draw(target: Target, groups: np.ndarray | None, how: Mapping[str, Any]) -> Sequence[np.ndarray]:
    is_stratified = how.get("stratify", True)
    if how.get("fold") is not None:
        strata = target.codes if is_stratified else np.zeros(len(target.rows), dtype=np.int64)
        options = (how.get("folds", 5), how.get("fold_validation", 0.2), how.get("fold_seed", 42))
        return draw_folds(strata, groups, *options)[how["fold"]]
    labels = target.codes if is_stratified and target.codes.ndim == 1 else None
    fractions, seed = how.get("fractions", (0.7, 0.1, 0.2)), how.get("split_seed", 2025)
    return draw_split(len(target.rows), labels, groups, fractions, seed, target.names)


def crossing_findings(
    splits: Mapping[str, Sequence[int]],
    digests: Sequence[tuple[FileColumn, Mapping[int, str]]],
    group: pd.Series | None,
) -> list[Finding]:
    """Files and groups that stand in several splits."""
    findings = []
    contents = [(column.noun, column.place, pd.Series(values, dtype=object)) for column, values in digests]
    for noun, place, values in [*contents, *([("group", "group", group)] if group is not None else [])]:
        split_of = pd.Series({row: split for split, rows in splits.items() for row in rows}, dtype=object)
        divided = pd.DataFrame({"value": values, "split": split_of}).dropna()
        is_shared = divided.groupby("value")["split"].transform("nunique") > 1
        if is_shared.any():
            level = "error" if noun == "group" else "warning"
            where = "" if place in ("images", "group") else f" of '{place}'"
            text = f"{number_of(divided['value'][is_shared].nunique(), noun)}{where} in several splits"
            fix = "correct the split column" if level == "error" else "set dataset.group, or remove the copies"
            findings.append(Finding(level, "splits", text, fix, row_numbers(is_shared)))
    return findings
