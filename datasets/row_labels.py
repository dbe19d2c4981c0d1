"""Labels of the rows of a CSV file: which rows a data set uses, its classes, and the target of each row."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from datasets.readers.csv_table import CsvTable
from datasets.readers.spellings import as_texts, check_quoted, most_common, spellings, unquoted
from utils.errors import UserError

log = logging.getLogger(__name__)


class RowLabels:
    """One label column with classes, or (multi-label) a column of 1, 0 and -1 per label.

    Args:
        label, classes, leave_out, min_groups, rare_class: see :class:`datasets.readers.csv_rows.CsvRows`.

    Attributes:
        columns: the label column, or the columns of a multi-label task.
        class_names: before rare classes are left out or merged.
        task: binary | multiclass | multilabel.

    Raises:
        UserError: an impossible option.
    """

    def __init__(
        self,
        label: str | Sequence[str],
        *,
        classes: Sequence[Any] | Mapping[str, Any] | None = None,
        leave_out: Sequence[Any] = (),
        min_groups: int = 0,
        rare_class: str | None = None,
    ) -> None:
        self.columns = [label] if isinstance(label, str) else [str(column) for column in label]
        self.leave_out, self.min_groups, self.rare_class = as_texts(leave_out), min_groups, rare_class
        self.values_of: dict[str, list[str]] = {}  # class -> its values in the label column
        self._unquoted: list[Any] = []
        self.task: Literal["multiclass", "binary", "multilabel"]
        if isinstance(label, str):
            if not classes:
                raise UserError(
                    f"dataset.classes is empty: list the values of column '{label}' in the order of classes"
                )
            self.values_of = spellings(classes, key="classes", noun="class")
            self._unquoted = unquoted(classes)
            self.class_names = list(self.values_of)
            self.task = "binary" if len(self.class_names) == 2 and not min_groups else "multiclass"
            return
        self.class_names, self.task = self.columns, "multilabel"
        if len(self.columns) < 2:
            raise UserError("dataset.label lists fewer than two columns: give one as a name, with dataset.classes")
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"dataset.label names a column twice: {', '.join(self.columns)}")
        if leave_out or min_groups:
            raise UserError("dataset.leave_out and dataset.min_groups are for one label column: leave them out")

    def settings(self) -> dict[str, Any]:
        """What targets depend on, for a signature."""
        return {
            "labels": self.columns,
            "classes": list(self.values_of.items()) or self.class_names,
            "kept": [self.leave_out, self.min_groups, self.rare_class],
        }

    def refuse_inputs(self, columns: Sequence[str], where: str) -> None:
        """Refuse label columns among the inputs.

        Raises:
            UserError: names the column.
        """
        if leaks := sorted(set(columns) & set(self.columns)):
            raise UserError(f"column '{leaks[0]}' is a label and an input: take it out of {where}")

    def select(self, table: CsvTable, group: str | None) -> tuple[CsvTable, list[str], dict[str, int]]:
        """Select the rows to use, with the name of the class in place of its values in the label column.

        Args:
            group: column whose values ``min_groups`` counts, None = rows.

        Returns:
            The rows; names of the classes; reason -> number of rows that are left out for it.

        Raises:
            UserError: no row, or only one class, is left.
        """
        if self.task == "multilabel":
            return table, list(self.class_names), {}
        cells = table.frame[self.columns[0]]
        check_quoted(self._unquoted, cells, "dataset.classes", table.path)
        left_out = {f"label '{value}'": int((cells == value).sum()) for value in self.leave_out}
        class_of = {value: name for name, values in self.values_of.items() for value in values}
        classes, names = cells.map(class_of), list(self.class_names)
        unused = cells.isin(self.leave_out)
        if self.min_groups:
            classes, names, rare = self._without_rare(table, classes, group)
            left_out |= rare
            if self.rare_class is None:
                unused |= classes.notna() & ~classes.isin(names)
        for reason, n in left_out.items():
            log.info("%s: %d rows left out: %s", table.path, n, reason)
        if unused.all():
            raise UserError(f"{table.path}: every row is left out, by dataset.leave_out or dataset.min_groups")
        named = table.frame.assign(**{self.columns[0]: classes.where(classes.notna(), cells)})
        return replace(table, frame=named).select(~unused.to_numpy()), names, left_out

    def _without_rare(
        self, table: CsvTable, classes: pd.Series, group: str | None
    ) -> tuple[pd.Series, list[str], dict[str, int]]:
        """Merge classes with fewer than ``min_groups`` groups into ``rare_class``, or take them out of the names."""
        units = table.frame[group] if group else pd.Series(np.arange(len(table)))
        counts = {name: int(units[classes == name].nunique()) for name in self.class_names}
        rare = [name for name in self.class_names if counts[name] < self.min_groups]
        names = [name for name in self.class_names if name not in rare]
        unit = f"values of '{group}'" if group else "rows"
        listed = ", ".join(f"'{name}' ({counts[name]})" for name in rare)
        few = f"fewer than {self.min_groups} {unit}"
        left_out = {}
        if rare and self.rare_class is None:
            log.warning("%s: classes with %s left out: %s", table.path, few, listed)
            left_out = {f"class '{name}', {counts[name]} {unit}": int((classes == name).sum()) for name in rare}
        elif rare:
            log.warning("%s: classes with %s become '%s': %s", table.path, few, self.rare_class, listed)
            classes = classes.where(~classes.isin(rare), self.rare_class)
            names.append(str(self.rare_class))
        if len(names) < 2:
            raise UserError(
                f"{table.path}: fewer than two classes have at least {self.min_groups} {unit} ({listed} have not): "
                "lower dataset.min_groups"
            )
        return classes, names, left_out

    def target(self, table: CsvTable, class_names: Sequence[str]) -> np.ndarray:
        """Targets of the rows of :meth:`select`.

        Returns:
            (N,) int64, or (N, C) float32 with -1 for 'no label'.

        Raises:
            UserError: a label that is empty or unknown.
        """
        if self.task != "multilabel":
            name = self.columns[0]
            cells = table.frame[name]
            unknown = ~cells.isin(class_names)
            table.refuse(table.missing[name] & unknown, f"rows without a label in column '{name}'")
            known = [value for values in self.values_of.values() for value in values]
            table.refuse(
                unknown,
                f"labels in column '{name}' are outside dataset.classes, {most_common(cells[unknown])}",
                f"known are {', '.join(known[:10])}; add the class, or remove these rows",
            )
            return cells.map({name: i for i, name in enumerate(class_names)}).to_numpy(np.int64)
        target = np.full((len(table), len(self.columns)), -1, dtype=np.float32)
        for j, name in enumerate(self.columns):
            values = table.numbers(name)
            is_labelled = ~table.missing[name]
            table.refuse(
                is_labelled & ~values.isin([1, 0, -1]),
                f"labels in column '{name}' are outside 1, 0 and -1 (no label)",
            )
            target[is_labelled, j] = values[is_labelled]
        return target

    def check_splits(
        self, target: np.ndarray, splits: Mapping[str, np.ndarray], path: Path, is_again: bool = False
    ) -> None:
        """Check that every label of a multi-label task has positive and negative rows in every split.

        Args:
            is_again: log nothing.

        Raises:
            UserError: a label without a positive row in training; other gaps are logged.
        """
        if self.task != "multilabel":
            return
        for split, rows in splits.items():
            for kind, value in (("positive", 1), ("negative", 0)):
                lacking = [name for name, n in zip(self.columns, (target[rows] == value).sum(0)) if n == 0]
                if not lacking:
                    continue
                problem = f"{path}: no {kind} row of {len(lacking)} of {len(self.columns)} labels in split '{split}'"
                shown = f"{', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}"
                if split == "train" and kind == "positive":
                    raise UserError(
                        f"{problem} ({shown}): they cannot be learned, take them out of dataset.label or divide the "
                        "rows anew"
                    )
                if not is_again:
                    log.warning("%s (%s): they have no score there", problem, shown)
