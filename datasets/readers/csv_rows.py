"""Samples from one CSV file: labels, image names and splits, for data sets that need no Python of their own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from datasets.base import SPLITS
from datasets.readers.csv_files import Dialect, check_columns, read_csv
from datasets.readers.spellings import check_quoted, counted, listed, spellings, unquoted
from datasets.source import SourcedDataModule, file_digest
from datasets.splits import draw_folds, draw_split
from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class Rows:
    """What a table says of its samples.

    Attributes:
        frame: the rows that are used, all cells as text.
        missing: of the same shape, True = the cell is not there.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        class_names: C names.
        splits: split -> sorted rows of the frame; splits without rows are left out.
        images: a file a row, None where there is none (``without_image=missing``).
        left_out: reason -> rows of the file that are not used.
    """

    frame: pd.DataFrame
    missing: pd.DataFrame
    target: np.ndarray
    class_names: list[str]
    splits: dict[str, np.ndarray]
    images: list[Path | None]
    left_out: dict[str, int]


class CsvRows(SourcedDataModule):
    """A data set with one row a sample in a CSV file with a header; says which image, label and split a row has.

    Args:
        name: of the data set.
        csv: the table.
        image: column with the name of the image file.
        images: folder that these names start from; None = that of the CSV file.
        image_suffix: what to append to the names, for example ``.jpg``.
        label: column of the label, or (multi-label) a list of columns with 1, 0 and, for 'no label', -1 or nothing.
        classes: values of the label column in the order of the class numbers, or a mapping class -> the values that
            stand for it; for multi-label unused.
        leave_out: values of the label column whose rows are not used.
        min_groups: classes with fewer groups (rows, where there is no ``group``) are not used, or ...
        rare_class: ... together become a class of this name, the last one.
        missing_values: cells that mean 'not there', besides empty ones.
        separator, decimal, encoding: of the CSV file, see :class:`Dialect`; None = comma, point and UTF-8.
        split: column that names the split of each row, None = drawn.
        split_values: split -> its value (or list of values) in that column.
        fractions: of train, val and test where they are drawn; they add up to 1.
        stratify: draw with the class shares of the whole (not for multi-label).
        group: column whose equal values must stay in one split, a patient for example.
        split_seed: of the draw.
        fold: this one of the ``folds`` of a cross-validation is the test split, instead of ``split`` and ``fractions``:
            see :func:`draw_folds`. None = no cross-validation.
        fold_validation: share of the rows outside the fold that become the validation split.
        fold_seed: of folds and validation rows.
        without_image: rows without an image name, or (not ``refuse``) whose file is not there: ``refuse``,
            ``leave_out``, or ``missing``, which keeps them without this modality.
        **kwargs: see :class:`MultimodalDataModule`.

    Raises:
        UserError: an impossible option.
    """

    paths: ClassVar[tuple[str, ...]] = ("csv", "images")
    images_may_lack = False  # whether rows without an image can be used

    def __init__(
        self,
        *,
        name: str,
        csv: str | None,
        image: str,
        label: str | Sequence[str],
        classes: Sequence[Any] | Mapping[str, Any] | None = None,
        leave_out: Sequence[Any] = (),
        min_groups: int = 0,
        rare_class: str | None = None,
        images: str | None = None,
        image_suffix: str = "",
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
        without_image: str = "refuse",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        if csv is None:
            raise UserError("dataset.csv=null: give the CSV file of the table")
        self.dialect = Dialect.of(separator, decimal, encoding)
        self.csv, self.image, self.image_suffix = Path(csv), image, image_suffix
        self.images = Path(images) if images else self.csv.parent
        self.labels = [label] if isinstance(label, str) else [str(column) for column in label]
        self.class_values: dict[str, list[str]] = {}
        self._unquoted: list[Any] = []
        if isinstance(label, str):
            if not classes:
                raise UserError(
                    f"dataset.classes is empty: list the values of column '{label}' in the order of classes"
                )
            self.class_values = spellings(classes, "classes", "class")
            self._unquoted = unquoted(classes)
            self.classes = list(self.class_values)
            self.task = "binary" if len(self.classes) == 2 and not min_groups else "multiclass"
        else:
            self.classes, self.task = self.labels, "multilabel"
            if len(self.labels) < 2:
                raise UserError("dataset.label lists fewer than two columns: give one as a name, with dataset.classes")
            if len(set(self.labels)) < len(self.labels):
                raise UserError(f"dataset.label names a column twice: {', '.join(self.labels)}")
            if leave_out or min_groups:
                raise UserError("dataset.leave_out and dataset.min_groups are for one label column: leave them out")
        self.leave_out, self.min_groups, self.rare_class = listed(leave_out), min_groups, rare_class
        self.missing_values = ["", *listed(missing_values)]
        self.split_column, self.group = split, group
        self.split_values = {str(key): listed(value) for key, value in (split_values or {}).items()}
        self.fractions, self.stratify, self.split_seed = [float(f) for f in fractions], stratify, split_seed
        self._numbers = np.zeros(0, dtype=np.int64)
        self.fold, self.folds = fold, folds
        self.fold_validation, self.fold_seed = float(fold_validation), fold_seed
        self.without_image = without_image
        if fold is not None and not (folds >= 2 and 0 <= fold < folds):
            raise UserError(f"dataset.fold={fold}: there are {folds} folds, counted from 0 (dataset.folds, at least 2)")
        if not 0 < self.fold_validation < 1:
            raise UserError(f"dataset.fold_validation={fold_validation}: must be a share between 0 and 1")
        known = ("refuse", "leave_out", "missing") if self.images_may_lack else ("refuse", "leave_out")
        if without_image not in known:
            raise UserError(f"dataset.without_image={without_image}: must be one of {', '.join(known)}")
        if unknown := sorted(set(self.split_values) - set(SPLITS)):
            raise UserError(f"dataset.split_values: unknown split '{unknown[0]}', known are {', '.join(SPLITS)}")
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise UserError(
                f"dataset.fractions={self.fractions}: give three shares (train, val, test) that add up to 1"
            )

    def row_settings(self) -> dict[str, Any]:
        """What :meth:`read_rows` depends on, for a signature.

        Raises:
            UserError: the table is not there.
        """
        if not self.csv.is_file():
            raise UserError(f"there is no table {self.csv}: set dataset.csv to your CSV file")
        return {
            "csv": file_digest(self.csv),
            "image": [self.image, self.image_suffix],
            "labels": self.labels,
            "classes": list(self.class_values.items()) or self.classes,
            "kept": [self.leave_out, self.min_groups, self.rare_class],
            "missing_values": self.missing_values,
            "split": [self.split_column, self.split_values],
            "drawn": [self.fractions, self.stratify, self.group, self.split_seed],
            "folds": [self.fold, self.folds, self.fold_validation, self.fold_seed],
            "without_image": self.without_image,
            **({} if self.dialect == Dialect() else {"dialect": asdict(self.dialect)}),
        }

    def read_rows(self, columns: Sequence[str]) -> Rows:
        """Read and check the table.

        Args:
            columns: needed besides those of image, label, split and group.

        Raises:
            UserError: names column, count and first row of what does not fit.
        """
        frame = self.read_frame()
        needed = [self.image, *self.labels, *columns, self.split_column, self.group]
        check_columns(frame, [c for c in needed if c], self.csv)
        self._numbers = np.arange(1, len(frame) + 1)
        frame, names, left_out = self._keep(frame)
        if self.group:
            self.refuse(
                frame[self.group].isin(self.missing_values),
                f"rows have nothing in column '{self.group}', which divides the splits",
                "fill it, remove these rows, or name another column in dataset.group",
            )
        frame, files = self._with_images(frame, left_out)
        missing = frame.isin(self.missing_values)
        target = self._target(frame, missing, names)
        blank = np.zeros(len(target), dtype=bool) if target.ndim == 1 else np.array((target < 0).all(1))
        if blank.any():
            log.warning("%s: %d of %d rows left out: none of their labels is known", self.csv, blank.sum(), len(blank))
            left_out["no label"] = int(blank.sum())
            kept = ~blank
            if not kept.any():
                raise UserError(f"{self.csv}: no row has a label in {', '.join(self.labels)}: name the right columns")
            frame, missing = (part[kept].reset_index(drop=True) for part in (frame, missing))
            target, self._numbers = target[kept], self._numbers[kept]
            files = [file for file, keep in zip(files, kept) if keep]
        splits = self._split_rows(frame, target, names)
        if self.task == "multilabel":
            self._check_labels(target, splits)
        if absent := [s for s in SPLITS if s not in splits]:
            log.warning("%s has no rows for %s", self.csv, " and ".join(absent))
        homes = Counter(name for r in splits.values() for name in set(frame[self.image].iloc[r]) - {""})
        crossing = [name for name, n in homes.items() if n > 1]
        if crossing:
            log.warning(
                "%d images stand in more than one split (%s): what is tested was partly seen in training",
                len(crossing),
                crossing[0],
            )
        return Rows(frame, missing, target, names, splits, files, left_out)

    def read_frame(self) -> pd.DataFrame:
        """The table, all cells as text.

        Raises:
            UserError: it cannot be read.
        """
        return read_csv(self.csv, dialect=self.dialect)

    def _with_images(self, frame: pd.DataFrame, left_out: dict[str, int]) -> tuple[pd.DataFrame, list[Path | None]]:
        """The rows that are used, as ``without_image`` says, and the image file of each."""
        unnamed = frame[self.image].isin(self.missing_values).to_numpy(bool)
        paths = [self.images / f"{name}{self.image_suffix}" for name in frame[self.image]]
        if self.without_image == "refuse":  # files that are not there are counted when they are to be decoded
            self.refuse(
                unnamed,
                f"rows without an image name in column '{self.image}'",
                "mend or remove these rows, or set dataset.without_image",
            )
            return frame, list(paths)
        there = np.logical_and(~unnamed, [path.is_file() for path in paths])
        if not there.any():
            raise UserError(f"{self.csv}: no image is in {self.images}, for example {paths[0]}: set dataset.images")
        if not there.all():
            kept = "used without it" if self.without_image == "missing" else "left out"
            log.warning(
                "%s: %d of %d rows have no image (%d without a name), %s",
                self.csv,
                (~there).sum(),
                len(there),
                unnamed.sum(),
                kept,
            )
        if self.without_image == "missing":
            return frame, [path if here else None for path, here in zip(paths, there)]
        left_out["no image"] = int((~there).sum())
        self._numbers = self._numbers[there]
        return frame[there].reset_index(drop=True), [path for path, here in zip(paths, there) if here]

    def _check_labels(self, target: np.ndarray, splits: Mapping[str, np.ndarray]) -> None:
        """
        Raises:
            UserError: a label without a positive or without a negative row in training.
        """
        for split, r in splits.items():
            for what, value in (("positive", 1), ("negative", 0)):
                lacking = [name for name, n in zip(self.labels, (target[r] == value).sum(0)) if n == 0]
                if not lacking:
                    continue
                found = f"{self.csv}: no {what} row of {len(lacking)} of {len(self.labels)} labels in split '{split}'"
                shown = f"{', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}"
                if split == "train" and what == "positive":
                    raise UserError(
                        f"{found} ({shown}): they cannot be learned, take them out of dataset.label or divide the rows "
                        "anew"
                    )
                log.warning("%s (%s): they have no score there", found, shown)

    def refuse(self, bad: pd.Series | np.ndarray, what: str, mend: str = "mend or remove these rows") -> None:
        """
        Args:
            bad: (N,) bool, rows of the frame.

        Raises:
            UserError: there is one; names count and first row, counted from 1 in the file, without the header.
        """
        bad = np.asarray(bad)
        if bad.any():
            raise UserError(
                f"{self.csv}: {int(bad.sum())} {what} (the first in row {self._numbers[bad.argmax()]}): {mend}"
            )

    def _keep(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str], dict[str, int]]:
        """The rows that are used, with the class in place of its values; class names; what was left out."""
        left_out: dict[str, int] = {}
        names = list(self.classes)
        if self.task == "multilabel":
            return frame, names, left_out
        column = frame[self.labels[0]]
        check_quoted(self._unquoted, column, "dataset.classes", self.csv)
        gone = column.isin(self.leave_out)
        left_out |= {f"label '{value}'": int((column == value).sum()) for value in self.leave_out}
        of_value = {value: name for name, values in self.class_values.items() for value in values}
        classes = column.map(of_value)
        if self.min_groups:
            units = frame[self.group] if self.group else pd.Series(np.arange(len(frame)))
            counts = {name: int(units[classes == name].nunique()) for name in names}
            rare = [name for name in names if counts[name] < self.min_groups]
            what = f"values of '{self.group}'" if self.group else "rows"
            found = ", ".join(f"'{name}' ({counts[name]})" for name in rare)
            names = [name for name in names if name not in rare]
            if rare and self.rare_class is None:
                log.warning("%s: classes with fewer than %d %s left out: %s", self.csv, self.min_groups, what, found)
                left_out |= {f"class '{name}', {counts[name]} {what}": int((classes == name).sum()) for name in rare}
                gone |= classes.isin(rare)
            elif rare:
                log.warning(
                    "%s: classes with fewer than %d %s become '%s': %s",
                    self.csv,
                    self.min_groups,
                    what,
                    self.rare_class,
                    found,
                )
                classes = classes.where(~classes.isin(rare), self.rare_class)
                names.append(str(self.rare_class))
            if len(names) < 2:
                raise UserError(
                    f"{self.csv}: fewer than two classes have at least {self.min_groups} {what} ({found} have not): "
                    "lower dataset.min_groups"
                )
        for reason, n in left_out.items():
            log.info("%s: %d rows left out: %s", self.csv, n, reason)
        kept = frame.assign(**{self.labels[0]: classes.where(classes.notna(), column)})[~gone]
        self._numbers = self._numbers[~gone.to_numpy()]
        if not len(kept):
            raise UserError(f"{self.csv}: every row is left out, by dataset.leave_out or dataset.min_groups")
        return kept.reset_index(drop=True), names, left_out

    def _target(self, frame: pd.DataFrame, missing: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
        if self.task != "multilabel":
            column = frame[self.labels[0]]
            unknown = ~column.isin(names)
            empty = missing[self.labels[0]] & unknown
            self.refuse(empty, f"rows without a label in column '{self.labels[0]}'")
            known = [value for values in self.class_values.values() for value in values]
            self.refuse(
                unknown,
                f"labels in column '{self.labels[0]}' are outside dataset.classes, {counted(column[unknown])}",
                f"known are {', '.join(known[:10])}; add the class, or remove these rows",
            )
            return column.map({name: i for i, name in enumerate(names)}).to_numpy(np.int64)
        target = np.full((len(frame), len(self.labels)), -1, dtype=np.float32)
        for j, name in enumerate(self.labels):
            values = self.dialect.numbers(frame[name])
            here = ~missing[name]
            self.refuse(
                here & ~values.isin([1, 0, -1]), f"labels in column '{name}' are outside 1, 0 and -1 (no label)"
            )
            target[here, j] = values[here]
        return target

    def _split_rows(self, frame: pd.DataFrame, target: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        groups = None if self.group is None else frame[self.group].to_numpy(str)
        if self.fold is not None:
            strata = target if self.stratify else np.zeros(len(target), dtype=np.int64)
            every_fold = draw_folds(strata, groups, self.folds, self.fold_validation, self.fold_seed)
            rows = dict(zip(SPLITS, every_fold[self.fold]))
            log.info(
                "%s: fold %d of %d, %s rows%s",
                self.csv,
                self.fold,
                self.folds,
                ", ".join(f"{split} {len(r)}" for split, r in rows.items()),
                "" if groups is None else f", divided by '{self.group}'",
            )
        elif self.split_column is None:
            labels = target if self.stratify and target.ndim == 1 else None
            parts = draw_split(
                len(frame), labels, groups, self.fractions, self.split_seed, None if labels is None else names
            )
            rows = dict(zip(SPLITS, parts))
        else:
            column = frame[self.split_column]
            known = [v for values in self.split_values.values() for v in values]
            unknown = ~column.isin(known)
            self.refuse(
                unknown,
                f"values in column '{self.split_column}' name no split, {counted(column[unknown])}",
                f"known are {', '.join(known)}; set dataset.split_values",
            )
            rows = {s: np.flatnonzero(column.isin(values)) for s, values in self.split_values.items()}
            if groups is not None:
                homes: dict[str, set[str]] = {}
                for split, r in rows.items():
                    for name in set(groups[r]):
                        homes.setdefault(name, set()).add(split)
                if crossing := [name for name, splits in homes.items() if len(splits) > 1]:
                    raise UserError(
                        f"{self.csv}: {len(crossing)} values of '{self.group}' stand in more than one split (the first "
                        f"is {crossing[0]}): mend column '{self.split_column}'"
                    )
        return {split: r for split, r in rows.items() if len(r)}
