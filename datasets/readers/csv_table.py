"""Rows of a CSV file, with the row numbers that messages name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.readers.csv_files import Dialect
from utils.errors import UserError


@dataclass(frozen=True)
class CsvTable:
    """Rows of a CSV file.

    Attributes:
        path: of the file.
        frame: the rows, all cells as text.
        row_numbers: (N,) of these rows in the file, counted from 1 without the header.
        missing_values: cells that mean 'no value'.
        dialect: how numbers are written.
    """

    path: Path
    frame: pd.DataFrame
    row_numbers: np.ndarray
    missing_values: Sequence[str]
    dialect: Dialect

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def missing(self) -> pd.DataFrame:
        """Booleans of the shape of ``frame``; True = the cell has no value."""
        return self.frame.isin(self.missing_values)

    def numbers(self, name: str) -> pd.Series:
        """A column as numbers, NaN where a cell is not a number."""
        return self.dialect.numbers(self.frame[name])

    def select(self, rows: np.ndarray) -> CsvTable:
        """The rows of a mask (N,) bool."""
        return replace(self, frame=self.frame[rows].reset_index(drop=True), row_numbers=self.row_numbers[rows])

    def refuse(self, bad: pd.Series | np.ndarray, problem: str, fix: str = "correct or remove these rows") -> None:
        """Refuse rows.

        Args:
            bad: (N,) bool.

        Raises:
            UserError: at least one row is bad; names their count and the first row.
        """
        bad = np.asarray(bad)
        if bad.any():
            first = self.row_numbers[bad.argmax()]
            raise UserError(f"{self.path}: {int(bad.sum())} {problem} (the first in row {first}): {fix}")
