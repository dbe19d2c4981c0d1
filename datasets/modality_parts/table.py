"""Tables: some columns of a CSV file, or columns that a data set codes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.batch import Modality
from datasets.coded_table import check_table, warn_of_constant_columns
from datasets.content import Content, TableRows
from datasets.modality_parts.base import About, Packed, Part, one_of
from datasets.readers.csv_rows import Rows
from datasets.row_encoder import RowEncoder, table_arrays
from datasets.scale import AS_IT_IS, Scale
from datasets.table_columns import TableColumns
from utils.errors import UserError

NATURAL_MISSING = ("keep", "fill")


class CodedPart(Part):
    """A table that the data set codes itself.

    Args:
        natural_missing: ``keep`` marks cells without a value as missing; ``fill`` lets their stored content (training
            mean, commonest level) count as observed.
    """

    kind = modality_kind = "table"
    read_time = ("natural_missing",)
    scaling = "standard"

    def __init__(self, name: str, keys: Mapping[str, str] | None = None, *, natural_missing: str = "keep") -> None:
        super().__init__(name, keys)
        self.natural_missing = natural_missing
        self.refuse(one_of("natural_missing", natural_missing, NATURAL_MISSING))

    @property
    def columns(self) -> list[str]:
        return []

    def settings(self) -> Any:
        return [self.kind]

    def load(self, rows: Rows, folder: Path) -> TableRows:
        raise AssertionError("the data set loads its table itself")

    def pack(self, content: Content, scratch: Path, shared: Path | None = None) -> Packed:
        table: TableRows = content.inputs[self.name]
        for split, rows in content.splits.items():
            check_table(split, table.values[rows], table.columns, table.cardinalities)
        train = content.splits.get("train", np.zeros(0, dtype=np.int64))
        warn_of_constant_columns(table.columns, table.values[train])
        gaps = np.zeros(table.values.shape, dtype=bool) if table.gaps is None else table.gaps
        n_codes = len(table.cardinalities)
        numbers = np.ma.masked_array(table.values[train, n_codes:].astype(np.float64), gaps[train, n_codes:])
        scale = AS_IT_IS if self.scaling == "standard" else z_score_scale(numbers)
        about = {
            "columns": table.columns,
            "cardinalities": table.cardinalities,
            **table.about,
            "scale": {"mean": list(scale.mean), "deviation": list(scale.deviation)},
        }
        missing_cells = {
            split: dict(zip(table.columns, gaps[rows].sum(0).tolist()))
            for split, rows in content.splits.items()
            if gaps[rows].any()
        }
        return Packed(
            arrays={"": table.values} | ({"_missing": gaps} if gaps.any() else {}),
            absent=np.zeros(len(content.target), dtype=bool),
            about=about,
            counts={"missing_cells": missing_cells},
            changes=[f"constant columns {', '.join(table.rescaled)}"] if table.rescaled else [],
        )

    def modality(self, about: About) -> Modality:
        columns, scale = tuple(about["columns"]), about["scale"]
        return Modality(
            self.name,
            "table",
            shape=(len(columns),),
            cardinalities=tuple(about["cardinalities"]),
            columns=columns,
            scale=Scale(tuple(scale["mean"]), tuple(scale["deviation"])),
        )

    def encode(self, encoder: RowEncoder, folder: Path, about: About) -> dict[str, np.ndarray]:
        raise AssertionError("the data set is not made of one CSV file")


class TablePart(CodedPart):
    """Categorical and continuous columns of a CSV file; every cell may be missing.

    Args:
        categorical: column -> its levels in order, or a mapping level -> the cell values that stand for it, or None =
            the values of the training split, sorted.
        continuous: columns of numbers, standardised with mean and standard deviation of the training split.
        unseen: a categorical value that is no level is refused (``refuse``) or counts as missing (``missing``).
        scaling: of the continuous columns, fitted on the training split: ``standard`` (mean 0, deviation 1) or
            ``min_max`` (0 to 1 there; other splits are not clipped). A constant column is divided by 1.
        natural_missing: see :class:`CodedPart`.
    """

    def __init__(
        self,
        name: str,
        keys: Mapping[str, str] | None = None,
        *,
        categorical: Mapping[str, Sequence[Any] | Mapping[str, Any] | None] | None = None,
        continuous: Sequence[str] = (),
        unseen: str = "refuse",
        scaling: str = "standard",
        natural_missing: str = "keep",
    ) -> None:
        problems: list[str] = []
        try:
            super().__init__(name, keys, natural_missing=natural_missing)
        except UserError as error:
            problems.append(str(error))
        self.scaling = scaling
        try:
            self.table = TableColumns(categorical, continuous, unseen, scaling, prefix=self.prefix)
        except UserError as error:
            problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))

    @property
    def columns(self) -> list[str]:
        return self.table.names

    def settings(self) -> Any:
        return [self.kind, self.table.settings()]

    def load(self, rows: Rows, folder: Path) -> TableRows:
        train = rows.splits.get("train", np.zeros(0, dtype=np.int64))
        coded = self.table.code(rows.table, train, where=rows.where)
        return TableRows(
            columns=self.table.names,
            cardinalities=[len(levels) for levels in coded.levels.values()],
            values=coded.values,
            gaps=coded.gaps,
            about={"levels": coded.levels, "scaling": coded.scaling, "fill": coded.fill},
            rescaled=coded.rescaled,
        )

    def encode(self, encoder: RowEncoder, folder: Path, about: About) -> dict[str, np.ndarray]:
        if self.natural_missing == "fill" and about.get("fill") is None:
            raise UserError(
                f"{self.key('natural_missing')}=fill: the packed data do not say what fills missing cells: delete "
                "their folder, prepare and export again"
            )
        fill = about["fill"] if self.natural_missing == "fill" else None
        return table_arrays(encoder, self.name, self.table, about["levels"], about["scaling"], fill)


def z_score_scale(numbers: np.ma.MaskedArray) -> Scale:
    """Scale that turns the numbers of a table into z-scores.

    Args:
        numbers: (N, F) of the training rows; cells without a value are masked.
    """
    mean, deviation = numbers.mean(0).filled(0.0), numbers.std(0).filled(0.0)
    # A constant column is not divided, whatever the rounding error of its deviation.
    varies = (numbers.max(0) > numbers.min(0)).filled(False) & (deviation > 0)
    deviation = np.where(varies, deviation, 1.0)
    # x * d + m is the z-score.
    return Scale(tuple((-mean / deviation).tolist()), tuple((1 / deviation).tolist()))
