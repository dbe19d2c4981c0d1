"""Any mix of modalities from one CSV file, without any Python (``docs/your-data.md``).

A row of the file is a sample. :mod:`datasets.modality_parts` has one part per kind of modality, which knows the columns
and files that it reads, how rows are packed, and how new rows are encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.composed import ComposedDataModule
from datasets.content import Content
from datasets.modality_parts.image import ImagePart
from datasets.modality_parts.options import PARTS, build_parts
from datasets.new_rows import NewRows
from datasets.readers.csv_rows import CsvRows, Rows
from datasets.readers.csv_table import CsvTable
from datasets.source import Source, sha256
from datasets.split_masks import all_cells
from datasets.transforms import JointAugmentation
from utils.errors import UserError

PACKING_VERSION = 1


class CsvModalities(CsvRows, ComposedDataModule):
    """Data set whose parts read the columns of one CSV file.

    Args:
        **kwargs: see :class:`CsvRows`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for part in self.parts:
            where = "the inputs" if part.keys is not None else f"dataset.modalities.{part.name}"
            self.row_labels.refuse_inputs(part.columns, where)

    id_column: str | None = None  # identifies rows, None = their numbers in the file
    image_column: str | None = None  # identifies new rows without another identifier

    def row_names(self, rows: Rows) -> Sequence[str] | np.ndarray:
        """Names of the rows, numbers where the cell is empty."""
        numbers = [str(number) for number in rows.table.row_numbers]
        cells = numbers if self.id_column is None else rows.table.frame[self.id_column].tolist()
        return np.array([name or number for name, number in zip(cells, numbers)])

    @property
    def shared_files(self) -> Path | None:
        return None if self.row_splits.fold is None else self.store.folder.with_name(self.name)

    def without_unusable(self, table: CsvTable, left_out: dict[str, int]) -> CsvTable:
        for part in self.parts:
            if (rows := part.unusable(table, self.images)).any():
                left_out[f"no {part.name}"] = int(rows.sum())
                table = table.select(~rows)
        return table

    def load_content(self) -> Content:
        """Read the table.

        Raises:
            UserError: everything in it that does not fit.
        """
        names = [column for part in self.parts for column in part.columns]
        rows = self.read_rows([*dict.fromkeys([*names, *filter(None, [self.id_column])])])
        return Content(
            class_names=rows.class_names,
            target=rows.target,
            names=self.row_names(rows),
            splits=rows.splits,
            inputs={part.name: part.load(rows, self.images) for part in self.parts},
            about={"csv": str(self.csv), "left_out": rows.left_out},
        )

    def check_targets(self, content: Content) -> None:
        super().check_targets(content)
        if not content.is_sample:  # rows may have been left out after the splits were drawn
            self.row_labels.check_splits(content.target, {"train": content.splits["train"]}, self.csv, is_again=True)

    def encode_rows(
        self, frame: pd.DataFrame, images: Path, where: str, *, unknown: str = "refuse", id_column: str | None = None
    ) -> NewRows:
        encoder = self.row_encoder(frame, where, unknown)
        arrays: dict[str, np.ndarray] = {}
        for part in self.parts:
            arrays |= part.encode(encoder, images, self.about(part))
        names = encoder.names(id_column, self.image_column)
        return encoder.finish(names, arrays, encoder.target(self.row_labels, self.class_names))


class CsvImage(CsvModalities):
    """Preset with one image per row, and another modality.

    Args:
        image: column with the name of the image file.
        image_suffix: what to append to the names, for example ``.jpg``.
        without_image: rows without an image name, or (not ``refuse``) whose file does not exist: ``refuse``,
            ``leave_out``, or ``missing``, which keeps them without this modality.
        **kwargs: see :class:`CsvRows`.
    """

    knows_first_rules = True

    def __init__(
        self, *, image: str | None = None, image_suffix: str = "", without_image: str = "refuse", **kwargs: Any
    ) -> None:
        if image is None:
            raise UserError("dataset.image=null: name the column with the image files")
        if without_image not in (known := ("refuse", "leave_out", "missing")):
            raise UserError(f"dataset.without_image={without_image}: must be one of {', '.join(known)}")
        self.image_column, self.image_suffix, self.without_image = image, image_suffix, without_image
        super().__init__(**kwargs)

    @property
    def image_files(self) -> dict[str, Any]:
        """Options of the image's files."""
        policy = self.without_image
        return {"column": self.image_column, "suffix": self.image_suffix, "empty": policy, "absent": policy}

    def row_settings(self) -> dict[str, Any]:
        files = [self.image_column, self.image_suffix]
        return {**super().row_settings(), "image": files, "without_image": self.without_image}


class FromCSV(CsvModalities):
    """Data set with any mix of modalities, from one CSV file with a header.

    Args:
        modalities: modality name -> its options: ``kind``, and what the part of this kind takes
            (:mod:`datasets.modality_parts`). Their order is the order of the columns of a mask.
        tokenizer: of all texts, see :func:`datasets.readers.tokens.load_tokenizer`; None without texts.
        id: column that identifies rows, None = their numbers in the file.
        augmentation: of training rows, whose images and tables are augmented together: arguments of
            :class:`datasets.transforms.JointAugmentation`; None = every image as its options say.
        **kwargs: see :class:`CsvRows`.

    Raises:
        UserError: all impossible options of the modalities.
    """

    paths = ("tokenizer",)
    paths_or_names = ("tokenizer",)
    read_time = ("augmentation",)
    drops_empty_rows = True

    def __init__(
        self,
        *,
        modalities: Mapping[str, Any],
        tokenizer: str | None = None,
        id: str | None = None,
        augmentation: Mapping[str, Any] | JointAugmentation | None = None,
        **kwargs: Any,
    ) -> None:
        self.parts = build_parts(modalities, tokenizer)
        super().__init__(**kwargs)
        self.id_column = id
        try:
            self.augmentation = JointAugmentation.of(augmentation)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"dataset.augmentation: {error}: see datasets.transforms.JointAugmentation for its settings"
            ) from None
        alone = [part.name for part in self.parts if isinstance(part, ImagePart) and part.augmentation is not None]
        if augmentation is not None and alone:
            raise UserError(
                f"dataset.augmentation and dataset.modalities.{alone[0]}.augmentation are given: keep the first to "
                "augment images and tables of a row together, or the second"
            )

    @classmethod
    def packing_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        packing = super().packing_arguments(arguments)
        if isinstance(modalities := packing.get("modalities"), Mapping):
            packing["modalities"] = {
                name: _packing_options(options) if isinstance(options, Mapping) else options
                for name, options in modalities.items()
            }
        return packing

    def find_source(self) -> Source:
        settings = [self.row_settings(), [[part.name, part.settings()] for part in self.parts], self.id_column]
        return Source("csv", sha256([PACKING_VERSION, settings]), {}, cache(self.load_content))

    def natural_rows(self, split: str) -> dict[str, np.ndarray]:
        """See the base class; a table or series without any value counts as absent."""
        rows = super().natural_rows(split)
        for name, cells in self.natural_cells(split).items():
            if (empty := all_cells(cells)).any():
                rows[name] = rows.get(name, np.zeros_like(empty)) | empty
        return rows


def _packing_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a modality on which its packed content depends."""
    read_time = PARTS[options["kind"]].read_time if options.get("kind") in PARTS else ()
    return {key: value for key, value in options.items() if key not in read_time}
