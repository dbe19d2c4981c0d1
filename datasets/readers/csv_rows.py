"""Samples from one CSV file: images, labels and splits, for data sets that need no Python of their own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from datasets.base import SPLITS
from datasets.readers.csv_files import Dialect, check_columns, count_rows, read_chunks, read_csv
from datasets.readers.csv_table import CsvTable
from datasets.readers.spellings import as_texts
from datasets.row_encoder import RowEncoder, as_text
from datasets.row_labels import RowLabels
from datasets.row_splits import RowSplits
from datasets.source import SourcedDataModule, file_digest
from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class Rows:
    """Samples of a CSV file.

    Attributes:
        table: the rows that are used.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        class_names: C names.
        splits: split -> its sorted rows; splits without rows are left out.
        left_out: reason -> number of rows of the file that are not used.
        where: what follows 'the training split' in messages.
    """

    table: CsvTable
    target: np.ndarray
    class_names: list[str]
    splits: dict[str, np.ndarray]
    left_out: dict[str, int]
    where: str = ""


class CsvRows(SourcedDataModule):
    """Data set with one row per sample in a CSV file with a header, which names files, label and split of each row.

    Args:
        name: of the data set.
        csv: the table.
        images: folder that the names of files start from; None = that of the CSV file.
        label: column of the label, or (multi-label) a list of columns with 1, 0 and, for 'no label', -1 or nothing.
        classes: values of the label column in the order of the class numbers, or a mapping class -> the values that
            stand for it; for multi-label unused.
        leave_out: values of the label column whose rows are not used.
        min_groups: minimum number of groups (without ``group``: of rows) of a class; rarer classes are not used.
        rare_class: name of a last class that rarer classes are merged into instead, None = none.
        missing_values: cells that mean 'no value', besides empty ones.
        separator, decimal, encoding: of the CSV file, see :class:`Dialect`; None = comma, point and UTF-8.
        split: column that names the split of each row, None = drawn.
        split_values: split -> its value (or list of values) in that column.
        fractions: of train, val and test where they are drawn; they add up to 1.
        stratify: draw with the class shares of all rows (not for multi-label).
        group: column whose equal values must stay in one split, a patient for example.
        split_seed: of the draw.
        fold: this one of the ``folds`` of a cross-validation is the test split, instead of ``split`` and ``fractions``:
            see :func:`datasets.splits.draw_folds`. None = no cross-validation.
        fold_validation: share of the rows outside the fold that become the validation split.
        fold_seed: of folds and validation rows.
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.

    Raises:
        UserError: an impossible option.
    """

    paths: ClassVar[tuple[str, ...]] = ("csv", "images")
    later: ClassVar[tuple[str, ...]] = ("separator", "decimal", "encoding")

    def __init__(
        self,
        *,
        name: str,
        csv: str | None,
        label: str | Sequence[str],
        classes: Sequence[Any] | Mapping[str, Any] | None = None,
        leave_out: Sequence[Any] = (),
        min_groups: int = 0,
        rare_class: str | None = None,
        images: str | None = None,
        missing_values: Sequence[Any] = (),
        separator: str | None = None,
        decimal: str | None = None,
        encoding: str | None = None,
        split: str | None = None,
        split_values: Mapping[str, Any] | None = None,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        stratify: bool = True,
        group: str | None = None,
        split_seed: int = 2025,
        fold: int | None = None,
        folds: int = 5,
        fold_validation: float = 0.2,
        fold_seed: int = 42,
        **kwargs: Any,
    ) -> None:
        if csv is None:
            raise UserError("dataset.csv=null: give the CSV file of the table")
        super().__init__(**kwargs)
        self.name = name
        self.dialect = Dialect.of(separator, decimal, encoding)
        self.csv = Path(csv)
        self.images = Path(images) if images else self.csv.parent
        self.missing_values = ["", *as_texts(missing_values)]
        self.row_labels = RowLabels(
            label, classes=classes, leave_out=leave_out, min_groups=min_groups, rare_class=rare_class
        )
        self.task = self.row_labels.task
        self.row_splits = RowSplits(
            column=split,
            values=split_values,
            fractions=fractions,
            stratify=stratify,
            group=group,
            split_seed=split_seed,
            fold=fold,
            folds=folds,
            fold_validation=fold_validation,
            fold_seed=fold_seed,
        )

    def read_new(self, path: Path, chunk: int | None = None) -> Iterator[pd.DataFrame]:
        return read_chunks(path, chunk, self.dialect)

    def count_new(self, path: Path) -> int:
        return count_rows(path, self.dialect)

    def row_encoder(self, frame: pd.DataFrame, where: str, unknown: str) -> RowEncoder:
        """Encoder of the columns of new rows."""
        names = [str(name) for name in frame.index]
        return RowEncoder(as_text(frame, self.dialect), where, self.missing_values, self.dialect, names, unknown)

    def row_settings(self) -> dict[str, Any]:
        """What :meth:`read_rows` depends on, for a signature.

        Raises:
            UserError: the table does not exist.
        """
        if not self.csv.is_file():
            raise UserError(f"there is no table {self.csv}: set dataset.csv to your CSV file")
        return {
            "csv": file_digest(self.csv),
            "missing_values": self.missing_values,
            **self.row_labels.settings(),
            **self.row_splits.settings(),
            **({} if self.dialect == Dialect() else {"dialect": asdict(self.dialect)}),
        }

    def read_rows(self, columns: Sequence[str]) -> Rows:
        """Read and check the table.

        Args:
            columns: further columns to check, beside those of label, split and group.

        Raises:
            UserError: names column, count and first row of what does not fit.
        """
        frame = self.read_frame()
        check_columns(frame, [*columns, *self.row_labels.columns, *self.row_splits.columns], self.csv)
        table = CsvTable(self.csv, frame, np.arange(1, len(frame) + 1), self.missing_values, self.dialect)
        table, class_names, left_out = self.row_labels.select(table, self.row_splits.group)
        self.row_splits.check_groups(table)
        table = self.without_unusable(table, left_out)
        target = self.row_labels.target(table, class_names)
        if target.ndim == 2 and (unlabelled := np.array((target < 0).all(1))).any():
            log.warning(
                "%s: %d of %d rows left out: none of their labels is known", self.csv, unlabelled.sum(), len(unlabelled)
            )
            left_out["no label"] = int(unlabelled.sum())
            if unlabelled.all():
                raise UserError(
                    f"{self.csv}: no row has a label in {', '.join(self.row_labels.columns)}: name the right columns"
                )
            table, target = table.select(~unlabelled), target[~unlabelled]
        splits = self.row_splits.divide(table, target, class_names)
        self.row_labels.check_splits(target, splits, self.csv)
        if absent := [split for split in SPLITS if split not in splits]:
            log.warning("%s has no rows for %s", self.csv, " and ".join(absent))
        fold = self.row_splits.fold
        return Rows(table, target, class_names, splits, left_out, "" if fold is None else f" of fold {fold}")

    def without_unusable(self, table: CsvTable, left_out: dict[str, int]) -> CsvTable:
        """The rows to divide into splits; adds reasons and numbers of the others to ``left_out``."""
        return table

    def read_frame(self) -> pd.DataFrame:
        """The table, all cells as text.

        Raises:
            UserError: it cannot be read.
        """
        return read_csv(self.csv, dialect=self.dialect)


def warn_of_crossing_files(names: pd.Series, splits: Mapping[str, np.ndarray], noun: str = "images") -> None:
    """Warn of files that stand in more than one split.

    Args:
        names: (N,) of the files of the rows, empty where a row has none.
        splits: split -> its rows.
    """
    uses = Counter(name for rows in splits.values() for name in set(names.iloc[rows]) - {""})
    if crossing := [name for name, n in uses.items() if n > 1]:
        log.warning(
            "%d %s stand in more than one split (%s): the test rows were partly seen in training",
            len(crossing),
            noun,
            crossing[0],
        )
