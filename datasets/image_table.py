"""Image + table from one CSV file: a preset of :class:`datasets.from_csv.FromCSV` (``docs/your-data.md``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datasets.from_csv import CsvImage
from datasets.image_table_module import KEYS, ImageTableModule
from datasets.modality_parts.table import TablePart, z_score_scale
from datasets.readers.csv_rows import Rows
from datasets.scale import AS_IT_IS, Scale
from datasets.source import Source
from datasets.table_columns import TableColumns


class ImageTable(CsvImage, ImageTableModule):
    """Data set with an image and a table row per sample, from one CSV file with a header.

    Args:
        categorical, continuous, unseen, scaling: see :class:`datasets.modality_parts.table.TablePart`.
        **kwargs: see :class:`CsvImage` and :class:`ImageTableModule`.
    """

    def __init__(
        self,
        *,
        categorical: Mapping[str, Sequence[Any] | Mapping[str, Any] | None] | None = None,
        continuous: Sequence[str] = (),
        unseen: str = "refuse",
        scaling: str = "standard",
        **kwargs: Any,
    ) -> None:
        self.column_options: dict[str, Any] = {
            "categorical": categorical,
            "continuous": continuous,
            "unseen": unseen,
            "scaling": scaling,
        }
        self._number_scale: Scale | None = None
        super().__init__(**kwargs)

    def table_part(self, natural_missing: str) -> TablePart:
        return TablePart(self.table_name, KEYS, natural_missing=natural_missing, **self.column_options)

    @property
    def columns(self) -> TableColumns:
        """Columns of the table."""
        part = self.part(self.table_name)
        assert isinstance(part, TablePart)
        return part.table

    @property
    def number_scale(self) -> Scale:
        """For ``min_max``: mean and deviation of the scaled numbers over the training rows that have them."""
        if self.columns.scaling == "standard" or not self.store.has_split("train"):
            return AS_IT_IS
        if self._number_scale is None:
            self._number_scale = z_score_scale(self.observed_numbers(self.split("train")))
        return self._number_scale

    def find_source(self) -> Source:
        return self.content_source("csv", {**self.row_settings(), **self.columns.settings()}, self.load_content)

    def row_names(self, rows: Rows) -> np.ndarray:
        return rows.table.frame[self.image_column].to_numpy(str)
