"""Tables of a data set from one CSV file: some of its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.batch import Modality
from datasets.coded_table import warn_of_constant_columns
from datasets.modality_parts.base import About, Packed, Part, one_of
from datasets.readers.csv_rows import Rows
from datasets.row_encoder import RowEncoder, table_arrays
from datasets.scale import AS_IT_IS, Scale
from datasets.table_columns import TableColumns
from utils.errors import UserError


class TablePart(Part):
    """Categorical and continuous columns; every cell may be missing.

    Args:
        categorical, continuous, unseen, scaling: see :class:`datasets.image_table.ImageTable`.
        natural_missing: ``keep`` marks cells without a value as missing; ``fill`` lets their stored content (training
            mean, commonest level) count as observed.
    """

    kind = modality_kind = "table"
    read_time = ("natural_missing",)

    def __init__(
        self,
        name: str,
        *,
        categorical: Mapping[str, Sequence[Any] | Mapping[str, Any] | None] | None = None,
        continuous: Sequence[str] = (),
        unseen: str = "refuse",
        scaling: str = "standard",
        natural_missing: str = "keep",
    ) -> None:
        super().__init__(name)
        self.natural_missing = natural_missing
        problems = [f"dataset.{self.prefix}{p}" for p in one_of("natural_missing", natural_missing, ("keep", "fill"))]
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

    def pack(self, rows: Rows, folder: Path, scratch: Path) -> Packed:
        train = rows.splits.get("train", np.zeros(0, dtype=np.int64))
        coded = self.table.code(rows.table, train)
        warn_of_constant_columns(self.table.names, coded.values[train])
        n_codes = len(coded.levels)
        numbers = np.ma.masked_array(coded.values[train, n_codes:].astype(np.float64), coded.gaps[train, n_codes:])
        scale = AS_IT_IS if self.table.scaling == "standard" else z_score_scale(numbers)
        about = {
            "columns": self.table.names,
            "cardinalities": [len(levels) for levels in coded.levels.values()],
            "levels": coded.levels,
            "scaling": coded.scaling,
            "fill": coded.fill,
            "scale": {"mean": list(scale.mean), "deviation": list(scale.deviation)},
        }
        arrays = {"": coded.values} | ({"_missing": coded.gaps} if coded.gaps.any() else {})
        gaps = dict(zip(self.table.names, coded.gaps.sum(0).tolist()))
        return Packed(arrays, np.zeros(len(rows.table), dtype=bool), about, counts={"missing_cells": gaps})

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
