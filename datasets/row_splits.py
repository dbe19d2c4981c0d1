"""Splits of the rows of a CSV file: from a column, drawn, or as one fold of a cross-validation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datasets.base import SPLITS
from datasets.readers.csv_table import CsvTable
from datasets.readers.spellings import as_texts, most_common
from datasets.splits import draw_folds, draw_split
from utils.errors import UserError

log = logging.getLogger(__name__)


class RowSplits:
    """How rows are divided into training, validation and test rows.

    Args:
        column, values: ``split`` and ``split_values`` of :class:`datasets.readers.csv_rows.CsvRows`; see there for the
            other arguments, too.

    Raises:
        UserError: an impossible option.
    """

    def __init__(
        self,
        *,
        column: str | None = None,
        values: Mapping[str, Any] | None = None,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        stratify: bool = True,
        group: str | None = None,
        split_seed: int = 2025,
        fold: int | None = None,
        folds: int = 5,
        fold_validation: float = 0.2,
        fold_seed: int = 42,
    ) -> None:
        self.column, self.group, self.stratify, self.split_seed = column, group, stratify, split_seed
        self.values = {str(key): as_texts(value) for key, value in (values or {}).items()}
        self.fractions = [float(f) for f in fractions]
        self.fold, self.folds = fold, folds
        self.fold_validation, self.fold_seed = float(fold_validation), fold_seed
        if fold is not None and not (folds >= 2 and 0 <= fold < folds):
            raise UserError(f"dataset.fold={fold}: there are {folds} folds, counted from 0 (dataset.folds, at least 2)")
        if not 0 < self.fold_validation < 1:
            raise UserError(f"dataset.fold_validation={fold_validation}: must be a share between 0 and 1")
        if unknown := sorted(set(self.values) - set(SPLITS)):
            raise UserError(f"dataset.split_values: unknown split '{unknown[0]}', known are {', '.join(SPLITS)}")
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise UserError(
                f"dataset.fractions={self.fractions}: give three shares (train, val, test) that add up to 1"
            )

    def settings(self) -> dict[str, Any]:
        """What the splits depend on, for a signature."""
        return {
            "split": [self.column, self.values],
            "drawn": [self.fractions, self.stratify, self.group, self.split_seed],
            "folds": [self.fold, self.folds, self.fold_validation, self.fold_seed],
        }

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [column for column in (self.column, self.group) if column]

    def check_groups(self, table: CsvTable) -> None:
        """
        Raises:
            UserError: rows without a group.
        """
        if self.group:
            table.refuse(
                table.frame[self.group].isin(table.missing_values),
                f"rows have nothing in column '{self.group}', which divides the splits",
                "fill it, remove these rows, or name another column in dataset.group",
            )

    def divide(self, table: CsvTable, target: np.ndarray, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """Split -> its sorted rows; splits without rows are left out.

        Raises:
            UserError: an unknown split, a group in two splits, or rows that cannot be divided.
        """
        groups = None if self.group is None else table.frame[self.group].to_numpy(str)
        if self.fold is not None:
            rows = self._of_fold(table, target, groups)
        elif self.column is None:
            labels = target if self.stratify and target.ndim == 1 else None
            names = None if labels is None else class_names
            parts = draw_split(len(table), labels, groups, self.fractions, self.split_seed, names)
            rows = dict(zip(SPLITS, parts))
        else:
            rows = self._of_column(table, groups)
        return {split: numbers for split, numbers in rows.items() if len(numbers)}

    def _of_fold(self, table: CsvTable, target: np.ndarray, groups: np.ndarray | None) -> dict[str, np.ndarray]:
        assert self.fold is not None
        strata = target if self.stratify else np.zeros(len(target), dtype=np.int64)
        folds = draw_folds(strata, groups, self.folds, self.fold_validation, self.fold_seed)
        rows = dict(zip(SPLITS, folds[self.fold]))
        log.info(
            "%s: fold %d of %d, %s rows%s",
            table.path,
            self.fold,
            self.folds,
            ", ".join(f"{split} {len(numbers)}" for split, numbers in rows.items()),
            "" if groups is None else f", divided by '{self.group}'",
        )
        return rows

    def _of_column(self, table: CsvTable, groups: np.ndarray | None) -> dict[str, np.ndarray]:
        cells = table.frame[self.column]
        known = [value for values in self.values.values() for value in values]
        unknown = ~cells.isin(known)
        table.refuse(
            unknown,
            f"values in column '{self.column}' name no split, {most_common(cells[unknown])}",
            f"known are {', '.join(known)}; set dataset.split_values",
        )
        rows = {split: np.flatnonzero(cells.isin(values)) for split, values in self.values.items()}
        if groups is None:
            return rows
        splits_of: dict[str, set[str]] = {}
        for split, numbers in rows.items():
            for name in set(groups[numbers]):
                splits_of.setdefault(name, set()).add(split)
        if crossing := [name for name, splits in splits_of.items() if len(splits) > 1]:
            raise UserError(
                f"{table.path}: {len(crossing)} values of '{self.group}' stand in more than one split (the first is "
                f"{crossing[0]}): correct column '{self.column}'"
            )
        return rows
