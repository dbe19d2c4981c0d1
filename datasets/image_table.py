"""Image + table from one CSV file, without any Python (``docs/your-data.md``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.coded_table import Coded, Content
from datasets.image_table_module import ImageTableModule
from datasets.modality_parts.table import z_score_scale
from datasets.new_rows import NewRows
from datasets.readers.csv_rows import CsvRows
from datasets.row_encoder import table_arrays
from datasets.scale import AS_IT_IS, Scale
from datasets.source import Source
from datasets.table_columns import TableColumns
from utils.errors import UserError


class ImageTable(CsvRows, ImageTableModule):
    """Data set with an image and a table row per sample, from one CSV file with a header.

    Args:
        categorical: column -> its levels in order, or a mapping level -> the cell values that stand for it, or None =
            the values of the training split, sorted.
        continuous: columns of numbers, standardised with mean and standard deviation of the training split.
        unseen: a categorical value that is no level is refused (``refuse``) or counts as missing (``missing``).
        scaling: of the continuous columns, fitted on the training split: ``standard`` (mean 0, deviation 1) or
            ``min_max`` (0 to 1 there; other splits are not clipped). A constant column is divided by 1.
        **kwargs: see :class:`CsvRows` and :class:`ImageTableModule`.
    """

    can_lack_images = True

    def __init__(
        self,
        *,
        categorical: Mapping[str, Sequence[Any] | Mapping[str, Any] | None] | None = None,
        continuous: Sequence[str] = (),
        unseen: str = "refuse",
        scaling: str = "standard",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.columns = TableColumns(categorical, continuous, unseen=unseen, scaling=scaling)
        self.row_labels.refuse_inputs(self.columns.names, "the inputs")
        self._number_scale: Scale | None = None

    @property
    def has_shared_images(self) -> bool:
        return self.row_splits.fold is not None

    @property
    def number_scale(self) -> Scale:
        """For ``min_max``: mean and deviation of the scaled numbers over the training rows that have them."""
        if self.columns.scaling == "standard" or not self.store.has_split("train"):
            return AS_IT_IS
        if self._number_scale is None:
            self._number_scale = z_score_scale(self.observed_numbers(self.split("train")))
        return self._number_scale

    def find_source(self) -> Source:
        return self.content_source("csv", {**self.row_settings(), **self.columns.settings()}, self._load)

    def encode_rows(
        self, frame: pd.DataFrame, images: Path, where: str, *, unknown: str = "refuse", id_column: str | None = None
    ) -> NewRows:
        source = self.packed_meta()["source"]
        fill = source.get("fill") if self.natural_missing == "fill" else None
        if fill is None and self.natural_missing == "fill":
            raise UserError(
                f"{self.store.folder} does not say what fills missing cells (natural_missing=fill): delete it, prepare "
                "and export again"
            )
        encoder = self.row_encoder(frame, where, unknown)
        pixels = encoder.images(self.image_column, images, self.image_suffix, self.image_reader)
        table = table_arrays(encoder, self.table_name, self.columns, source["levels"], source["scaling"], fill)
        names = encoder.names(id_column, self.image_column)
        target = encoder.target(self.row_labels, self.class_names)
        return encoder.finish(names, {**pixels.arrays(self.image_name), **table}, target)

    def _load(self) -> Content:
        rows = self.read_rows(self.columns.names)
        fold = self.row_splits.fold
        train = rows.splits.get("train", np.zeros(0, dtype=np.int64))
        coded = self.columns.code(rows.table, train, where="" if fold is None else f" of fold {fold}")
        self.rescaled = coded.rescaled
        names = rows.table.frame[self.image_column].to_numpy(str)
        splits = {
            split: Coded(
                table=coded.values[numbers],
                target=rows.target[numbers],
                images=[rows.images[int(i)] for i in numbers],
                names=names[numbers],
                gaps=coded.gaps[numbers],
            )
            for split, numbers in rows.splits.items()
        }
        return Content(
            columns=self.columns.names,
            cardinalities=[len(levels) for levels in coded.levels.values()],
            class_names=rows.class_names,
            splits=splits,
            about={
                "csv": str(self.csv),
                "levels": coded.levels,
                "scaling": coded.scaling,
                "fill": coded.fill,
                "left_out": rows.left_out,
            },
        )
