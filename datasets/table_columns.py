"""Input columns of a CSV file as codes and standardised numbers, fitted on the training rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from datasets.readers.csv_table import CsvTable
from datasets.readers.spellings import check_quoted, most_common, similar_spellings, spellings, unquoted
from datasets.scaling import is_constant, mean_and_deviation, was_divided_by_rounding_error
from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class CodedColumns:
    """Values of the columns of N rows.

    Attributes:
        values: (N, F) float32, codes of the categorical columns first; gaps hold the commonest level or the mean.
        gaps: (N, F) bool, True = the source has no (known) value.
        levels: categorical column -> its levels in the order of their codes.
        scaling: continuous column -> zero and unit, in units of the source.
        fill: (F,) content of gaps.
        rescaled: columns that READING_RULES 1 divided by a rounding error.
    """

    values: np.ndarray
    gaps: np.ndarray
    levels: dict[str, list[str]] = field(default_factory=dict)
    scaling: dict[str, list[float]] = field(default_factory=dict)
    fill: list[float] = field(default_factory=list)
    rescaled: list[str] = field(default_factory=list)


class TableColumns:
    """Categorical and continuous input columns.

    Args:
        categorical, continuous, unseen, scaling: see :class:`datasets.image_table.ImageTable`.
        prefix: of these options below ``dataset`` in the configuration, for messages.

    Attributes:
        categorical: column -> its levels, None = those of the training rows.
        continuous: columns of numbers.
        merged: column -> level -> the values that stand for it, of columns whose levels merge values.

    Raises:
        UserError: an impossible option.
    """

    def __init__(
        self,
        categorical: Mapping[str, Sequence[Any] | Mapping[str, Any] | None] | None = None,
        continuous: Sequence[str] = (),
        unseen: str = "refuse",
        scaling: str = "standard",
        prefix: str = "",
    ) -> None:
        self.prefix = prefix
        self.categorical: dict[str, list[str] | None] = {}
        self.continuous = [str(column) for column in continuous]
        self.unseen, self.scaling = unseen, scaling
        self.merged: dict[str, dict[str, list[str]]] = {}
        self._unquoted: dict[str, list[Any]] = {}
        for column, given in (categorical or {}).items():
            values = None if given is None else spellings(given, key=f"{prefix}categorical.{column}", noun="level")
            self.categorical[str(column)] = None if values is None else list(values)
            self._unquoted[str(column)] = unquoted(given)
            if isinstance(given, Mapping) and values is not None:
                self.merged[str(column)] = values
        if not self.names:
            raise UserError(
                f"dataset.{prefix}categorical and dataset.{prefix}continuous are empty: name at least one column"
            )
        if repeated := [name for name, n in Counter(self.names).items() if n > 1]:
            raise UserError(f"column '{repeated[0]}' is both categorical and continuous: name it once")
        if unseen not in ("refuse", "missing"):
            raise UserError(f"dataset.{prefix}unseen={unseen}: must be refuse or missing")
        if scaling not in ("standard", "min_max"):
            raise UserError(f"dataset.{prefix}scaling={scaling}: must be standard or min_max")

    @property
    def names(self) -> list[str]:
        """All columns, the categorical ones first."""
        return [*self.categorical, *self.continuous]

    def settings(self) -> dict[str, Any]:
        """What the values depend on, for a signature."""
        return {
            "categorical": list(self.categorical.items()),
            **({"levels": list(self.merged.items())} if self.merged else {}),
            "continuous": self.continuous,
            "unseen": self.unseen,
            "scaling": self.scaling,
        }

    def code(self, table: CsvTable, train: np.ndarray, where: str = "") -> CodedColumns:
        """Code and standardise the rows of a table.

        Args:
            train: training rows, on which levels and scaling are fitted.
            where: what follows 'the training split' in messages.

        Raises:
            UserError: names the column, the values and the first row of what does not fit.
        """
        coded = CodedColumns(
            values=np.zeros((len(table), len(self.names)), dtype=np.float32),
            gaps=table.missing[self.names].to_numpy(bool, copy=True),
        )
        for j, name in enumerate(self.categorical):
            self._code(coded, j, name, table, train, where)
        for j, name in enumerate(self.continuous, len(self.categorical)):
            self._standardise(coded, j, name, table, train, where)
        return coded

    def _code(
        self, coded: CodedColumns, column: int, name: str, table: CsvTable, train: np.ndarray, where: str
    ) -> None:
        """Fill a categorical column of ``coded``."""
        listed, gaps = self.categorical[name], coded.gaps[:, column]
        values = self._cells(name, table, gaps).to_numpy(str)
        observed = _observed(values, gaps, train, table, name, where)
        levels = listed or sorted(set(observed))
        if not listed and len(observed) > 20 and len(levels) > 0.9 * len(observed):
            raise UserError(
                f"{table.path}: column '{name}' has {len(levels)} values in {len(observed)} training rows: it names "
                f"rows, take it out (of dataset.{self.prefix}categorical, or of the table), or list its levels there"
            )
        unseen = ~np.isin(values, levels) & ~gaps
        if self.unseen == "refuse":
            origin = f"dataset.{self.prefix}categorical lists" if listed else "the training split has"
            table.refuse(
                unseen,
                f"values in column '{name}' are none of the {len(levels)} that {origin}, {most_common(values[unseen])}",
                f"list them in dataset.{self.prefix}categorical, or set dataset.{self.prefix}unseen=missing",
            )
        if unseen.any():
            log.warning(
                "%s: %d values in column '%s' are none of the %d that training has, they count as missing: %s",
                table.path,
                unseen.sum(),
                name,
                len(levels),
                most_common(values[unseen]),
            )
        gaps |= unseen  # a view: marks them in `coded`
        code_of = {level: code for code, level in enumerate(levels)}
        known = observed[np.isin(observed, levels)]
        if not len(known):
            raise UserError(
                f"{table.path}: column '{name}' has none of the levels {', '.join(levels)} in the training split: "
                f"correct dataset.{self.prefix}categorical, or leave it out"
            )
        commonest = code_of[Counter(known).most_common(1)[0][0]]
        coded.fill.append(float(commonest))
        coded.values[:, column] = [commonest if is_gap else code_of[v] for v, is_gap in zip(values, gaps)]
        coded.levels[name] = levels

    def _cells(self, name: str, table: CsvTable, gaps: np.ndarray) -> pd.Series:
        """Cells of a categorical column, with the level in place of the values that stand for it."""
        cells = table.frame[name]
        check_quoted(self._unquoted.get(name, []), cells, f"dataset.{self.prefix}categorical.{name}", table.path)
        if name in self.merged:
            level_of = {value: level for level, values in self.merged[name].items() for value in values}
            return cells.map(lambda cell: level_of.get(cell, cell))
        if similar := similar_spellings(cells[~gaps]):
            log.warning(
                "%s: values in column '%s' differ only in case or blanks: %s; to merge them, list the values of each "
                "level: dataset.%scategorical.%s={level: [value, value]}",
                table.path,
                name,
                "; ".join(similar),
                self.prefix,
                name,
            )
        return cells

    def _standardise(
        self, coded: CodedColumns, column: int, name: str, table: CsvTable, train: np.ndarray, where: str
    ) -> None:
        """Fill a continuous column of ``coded``."""
        cells, gaps = table.frame[name], coded.gaps[:, column]
        numbers = table.numbers(name).to_numpy(np.float64, copy=True)
        wrong = ~np.isfinite(numbers) & ~gaps
        table.refuse(
            wrong,
            f"cells in column '{name}' are no numbers, {most_common(cells[wrong])}",
            "correct them, name them in dataset.missing_values, or make the column categorical",
        )
        observed = _observed(numbers, gaps, train, table, name, where)
        if self.scaling == "min_max":
            zero, unit = float(observed.min()), float(observed.max() - observed.min())
        else:
            zero, unit = map(float, mean_and_deviation(observed, ddof=1))
        unit = unit or 1.0
        # A gap holds the training mean, whatever the scaling.
        mean = zero if is_constant(observed) else observed.mean()
        coded.values[:, column] = (np.where(gaps, mean, numbers) - zero) / unit
        coded.fill.append(float((mean - zero) / unit))
        coded.scaling[name] = [zero, unit]
        if self.scaling == "standard" and was_divided_by_rounding_error(observed, ddof=1):
            coded.rescaled.append(name)


def _observed(
    values: np.ndarray, gaps: np.ndarray, train: np.ndarray, table: CsvTable, name: str, where: str
) -> np.ndarray:
    """Values of a column in the training rows that have one."""
    observed = values[train][~gaps[train]]
    if not len(observed):
        raise UserError(
            f"{table.path}: column '{name}' has no value in the {len(train)} rows of the training split{where}: "
            "leave it out"
        )
    return observed
