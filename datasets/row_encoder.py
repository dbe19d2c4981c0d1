"""New rows of a CSV file or data frame, encoded with the levels, scaling and image size of the training data."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.new_rows import NewRows
from datasets.readers.csv_files import Dialect
from datasets.readers.pictures import UNREADABLE
from datasets.readers.spellings import most_common
from datasets.row_labels import RowLabels
from datasets.table_columns import TableColumns
from utils.errors import UserError, first_line

# Numbers this many standard deviations from the training mean are remarked on: a wrong unit, or a slip of the keyboard.
FAR = 6.0


def as_text(frame: pd.DataFrame, dialect: Dialect) -> pd.DataFrame:
    """A user's data frame as :func:`read_csv` would read it: stripped text, "" where there is nothing, numbers as the
    dialect writes them."""
    columns = {}
    for position, name in enumerate(frame.columns):
        cells = frame.iloc[:, position]
        text = cells.map(lambda cell: "" if cell is None or cell is pd.NA or cell != cell else str(cell).strip())
        if pd.api.types.is_float_dtype(cells):  # whole numbers that became floats because others are missing
            text = text.str.removesuffix(".0").str.replace(".", dialect.decimal, regex=False)
        columns[str(name).strip()] = text
    return pd.DataFrame(columns).reset_index(drop=True)


@dataclass
class RowEncoder:
    """Encodes rows column by column, and collects what is wrong with them.

    Args:
        frame: cells as text.
        where: the source, for messages.
        missing_values: cells that mean "missing".
        dialect: of the numbers.
        unknown: what happens to absent columns, unseen levels, cells that are no numbers and images that cannot be
            read: ``refuse`` or ``missing``.
        row_names: N names of the rows, for messages and as identifiers.
    """

    frame: pd.DataFrame
    where: str
    missing_values: Sequence[str]
    dialect: Dialect
    row_names: Sequence[str]
    unknown: str = "refuse"
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # the columns that were looked for

    def __len__(self) -> int:
        return len(self.frame)

    def cells(self, column: str) -> pd.Series:
        """The cells of a column; all empty, with a problem or remark, where it is absent."""
        self.asked.append(column)
        if column in self.frame:
            return self.frame[column]
        near = difflib.get_close_matches(column, list(map(str, self.frame.columns)), 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        self._note(f"there is no column '{column}'{hint}", "its cells count as missing", "add it")
        return pd.Series([""] * len(self.frame), dtype=object)

    def _note(self, what: str, consequence: str, fix: str) -> None:
        if self.unknown == "missing":
            self.remarks.append(f"{self.where}: {what}, {consequence}")
        else:
            self.problems.append(f"{self.where}: {what}: {fix}, or set predict.unknown=missing")

    def _is_missing(self, cells: pd.Series) -> np.ndarray:
        return cells.isin(["", *self.missing_values]).to_numpy(bool)

    def codes(
        self, column: str, levels: Sequence[str], values: Mapping[str, Sequence[str]] | None, unseen: str = "refuse"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes (N,) of a categorical column and its missing cells (N,).

        Args:
            levels: in the order of their codes.
            values: level -> the cell values that stand for it, None = each level for itself.
            unseen: ``missing`` overrides ``unknown`` for values that are no level.
        """
        level_of = {value: level for level, listed in (values or {}).items() for value in listed}
        code_of = {level: code for code, level in enumerate(levels)}
        cells = self.cells(column)
        missing = self._is_missing(cells)
        code = np.array([code_of.get(level_of.get(cell, cell), -1) for cell in cells], dtype=np.int64)
        is_unseen = (code < 0) & ~missing
        if is_unseen.any():
            what = (
                f"{int(is_unseen.sum())} values in column '{column}' are none of its levels {', '.join(levels[:10])}: "
                f"{most_common(cells[is_unseen])}, the first in row {self._row(is_unseen)}"
            )
            if unseen == "missing":
                self.remarks.append(f"{self.where}: {what}, they count as missing")
            else:
                self._note(what, "they count as missing", "correct them")
        return np.where(code < 0, 0, code), missing | is_unseen

    def numbers(self, column: str, zero: float, unit: float, scaling: str) -> tuple[np.ndarray, np.ndarray]:
        """Scaled numbers (N,) of a continuous column, 0 where missing, and its missing cells (N,)."""
        cells = self.cells(column)
        missing = self._is_missing(cells)
        numbers = self.dialect.numbers(cells).to_numpy(np.float64)
        wrong = ~np.isfinite(numbers) & ~missing
        if wrong.any():
            self._note(
                f"{int(wrong.sum())} cells in column '{column}' are no numbers, {most_common(cells[wrong])}, the first "
                f"in row {self._row(wrong)}",
                "they count as missing",
                "correct them",
            )
        missing = missing | wrong
        scaled = np.where(missing, 0.0, (numbers - zero) / unit)
        centre, spread = (0.5, 0.5) if scaling == "min_max" else (0.0, 1.0)
        is_far = np.abs(scaled - centre) > FAR * spread
        is_far &= ~missing
        if is_far.any():
            self.remarks.append(
                f"{self.where}: {int(is_far.sum())} numbers in column '{column}' are far outside the training data, "
                f"{most_common(cells[is_far])}, the first in row {self._row(is_far)}; check their unit"
            )
        return scaled, missing

    def files(
        self,
        column: str,
        folder: Path,
        suffix: str,
        read: Callable[[Path], Sequence[Any]],
        arrays: Mapping[str, tuple[tuple[int, ...], Any]],
        noun: str = "image",
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Content of the files that a column names.

        A row lacks its file where it has no name, where there is no such file, and with ``unknown=missing`` where the
        file cannot be read.

        Args:
            read: file -> its values, one per array; raises one of UNREADABLE.
            arrays: key -> shape and type of the values of a row.
            noun: of a file, for messages.

        Returns:
            Key -> (N, ...), zeros in rows without content; and these rows, (N,) bool.
        """
        names = self.cells(column)
        absent = self._is_missing(names)
        paths = [folder / f"{name}{suffix}" for name in names]
        is_outside = np.array([is_outside_of(folder, path) for path in paths], dtype=bool) & ~absent
        if is_outside.any():
            self._note(
                f"{int(is_outside.sum())} names in column '{column}' lead out of {folder}, the first in row "
                f"{self._row(is_outside)}: {names.iloc[int(is_outside.argmax())]}",
                f"their {noun}s count as missing",
                "move the files there, or set predict.images",
            )
        absent = absent | is_outside
        exists = np.array([path.exists() for path in paths], dtype=bool) & ~absent
        if (~absent).any() and not exists.any():
            first = paths[int((~absent).argmax())]
            self.problems.append(
                f"{self.where}: no {noun} is in {folder}, for example {first.name}: set predict.images"
            )
        is_lost = ~absent & ~exists
        if is_lost.any() and exists.any():
            self.remarks.append(
                f"{self.where}: {int(is_lost.sum())} of {len(paths)} {noun} files are not in {folder} (the first in "
                f"row {self._row(is_lost)}: {paths[int(is_lost.argmax())].name}), their {noun}s count as missing"
            )
        content = {key: np.zeros((len(paths), *shape), dtype=dtype) for key, (shape, dtype) in arrays.items()}
        broken: list[tuple[int, str]] = []
        for row in np.flatnonzero(exists):
            try:
                for array, value in zip(content.values(), read(paths[row])):
                    array[row] = value
            except UNREADABLE as error:
                broken.append((int(row), f"{paths[row]} ({first_line(error)})"))
        if broken:
            self._note(f"{len(broken)} {noun}s cannot be read: {broken[0][1]}", "they count as missing", "replace them")
            exists[[row for row, _ in broken]] = False
        return content, ~exists

    def names(self, column: str | None, image: str | None) -> list[str]:
        """Identifiers: of the column, else the image name, else the row number (also where these are empty)."""
        numbers = list(self.row_names)
        if column is not None and column not in self.frame:
            self.problems.append(f"{self.where}: there is no column '{column}': correct dataset.id or predict.id")
            return numbers
        if column is not None and (doubled := doubles(name for name in self.frame[column] if name)):
            self.problems.append(
                f"{self.where}: {len(doubled)} identifiers in column '{column}' stand in several rows (the first is "
                f"{doubled[0]}): give each row an identifier of its own, or leave predict.id out"
            )
        chosen = column or image
        if chosen is None or chosen not in self.frame:
            return numbers
        return [name or n for name, n in zip(self.frame[chosen], numbers)]

    def target(self, labels: RowLabels, class_names: Sequence[str]) -> np.ndarray | None:
        """Labels (N,) or (N, C), -1 where a row has none or an unknown one; None without the label columns."""
        if not set(labels.columns) <= set(self.frame.columns):
            return None
        if labels.task != "multilabel":
            column = labels.columns[0]
            code_of = {v: i for i, name in enumerate(class_names) for v in labels.values_of.get(name, [name])}
            # Values that training leaves out are no classes, and no mistakes.
            unused = {*labels.leave_out, *(v for listed in labels.values_of.values() for v in listed)} - code_of.keys()
            cells = self.frame[column]
            unknown = ~cells.isin([*code_of, *unused]).to_numpy(bool) & ~self._is_missing(cells)
            if unknown.any():
                shown = f"{', '.join(class_names[:10])}: {most_common(cells[unknown])}"
                self._note(
                    f"{int(unknown.sum())} labels in column '{column}' are none of the classes {shown}, the first in "
                    f"row {self._row(unknown)}",
                    "they count as not known",
                    "correct them, or leave the column out",
                )
            return cells.map(lambda cell: code_of.get(cell, -1)).to_numpy(np.int64)
        values = self.frame[labels.columns].apply(pd.to_numeric, errors="coerce")
        return values.where(values.isin([0, 1]), -1).to_numpy(np.float32)

    def _row(self, rows: np.ndarray) -> str:
        return self.row_names[int(rows.argmax())]

    def finish(self, names: list[str], arrays: dict[str, np.ndarray], target: np.ndarray | None) -> NewRows:
        """
        Raises:
            UserError: all problems, one line each.
        """
        if self.asked and not set(self.asked) & set(self.frame.columns):
            raise UserError(
                f"{self.where} has none of the columns {', '.join(dict.fromkeys(self.asked))}: give a table with them"
            )
        if doubled := doubles(names):
            self.remarks.append(
                f"{self.where}: {len(doubled)} identifiers stand in several rows (the first is {doubled[0]})"
            )
        if self.problems:
            raise UserError("\n".join(dict.fromkeys(self.problems)))
        return NewRows(names, arrays, target, self.remarks)


def doubles(names: Iterable[str]) -> list[str]:
    """Names that stand more than once."""
    return [name for name, n in Counter(names).items() if n > 1]


def is_outside_of(folder: Path, path: Path) -> bool:
    """Whether a path leads out of a folder by its name; links within the folder may lead anywhere."""
    return not Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(folder.absolute()))


def table_arrays(
    encoder: RowEncoder,
    name: str,
    columns: TableColumns,
    levels: Mapping[str, Sequence[str]],
    scaling: Mapping[str, Sequence[float]],
    fill: Sequence[float] | None,
) -> dict[str, np.ndarray]:
    """A table (N, F) as a packed store has it: codes of the categorical columns, then scaled numbers.

    Args:
        name: of the modality.
        columns: options of the columns.
        levels: categorical column -> its levels, as fitted.
        scaling: continuous column -> zero and unit, as fitted.
        fill: (F,) content of missing cells, which then count as observed; None = they are missing.
    """
    parts = [
        encoder.codes(column, known, columns.merged.get(column), columns.unseen) for column, known in levels.items()
    ]
    parts += [encoder.numbers(column, zero, unit, columns.scaling) for column, (zero, unit) in scaling.items()]
    content, missing = (np.stack(arrays, axis=1) for arrays in zip(*parts))
    if fill is not None:
        content, missing = np.where(missing, np.asarray(fill), content), np.zeros_like(missing)
    return {name: content.astype(np.float32), **({f"{name}_missing": missing} if missing.any() else {})}
