"""Any mix of modalities from one CSV file, without any Python (``docs/your-data.md``).

A row of the file is a sample. :mod:`datasets.modality_parts` has one part per kind of modality, which knows the columns
and files that it reads, how rows are packed, and how new rows are encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from datasets.batch import Modality
from datasets.coded_table import check_classes_of_rows
from datasets.loader import Choose, Transform
from datasets.modality_parts.base import Packed, Part
from datasets.modality_parts.options import PARTS, build_parts
from datasets.new_rows import NewRows
from datasets.readers.csv_rows import CsvRows, Rows
from datasets.readers.tokens import save_tokenizer
from datasets.source import Source, SourcedDataModule, sample_rows, sha256
from datasets.split_masks import all_cells
from datasets.storage import link_file
from utils.errors import UserError

log = logging.getLogger(__name__)

PACKING_VERSION = 1


class FromCSV(CsvRows, SourcedDataModule):
    """Data set with any mix of modalities, from one CSV file with a header.

    Args:
        modalities: modality name -> its options: ``kind``, and what the part of this kind takes
            (:mod:`datasets.modality_parts`). Their order is the order of the columns of a mask.
        tokenizer: of all texts, see :func:`datasets.readers.tokens.load_tokenizer`; None without texts.
        id: column that identifies rows, None = their numbers in the file.
        **kwargs: see :class:`CsvRows`.

    Raises:
        UserError: all impossible options of the modalities.
    """

    paths = ("tokenizer",)
    paths_or_names = ("tokenizer",)
    needs_image = False

    def __init__(
        self, *, modalities: Mapping[str, Any], tokenizer: str | None = None, id: str | None = None, **kwargs: Any
    ) -> None:
        self.parts = build_parts(modalities, tokenizer)
        super().__init__(**kwargs)
        self.tokenizer, self.id_column = tokenizer, id
        for part in self.parts:
            self.row_labels.refuse_inputs(part.columns, f"dataset.modalities.{part.name}")

    @classmethod
    def packing_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        packing = super().packing_arguments(arguments)
        if isinstance(modalities := packing.get("modalities"), Mapping):
            packing["modalities"] = {
                name: _packing_options(options) if isinstance(options, Mapping) else options
                for name, options in modalities.items()
            }
        return packing

    # ---- packing -----------------------------------------------------------------------------------------------------

    def find_source(self) -> Source:
        settings = [self.row_settings(), [[part.name, part.settings()] for part in self.parts], self.id_column]
        return Source("csv", sha256([PACKING_VERSION, settings]), {}, cache(self._load))

    def _load(self) -> Rows:
        columns = [column for part in self.parts for column in part.columns]
        return self.read_rows([*dict.fromkeys(columns), *filter(None, [self.id_column])])

    def shorten(self, content: Rows, rows: int) -> tuple[Rows, dict[str, int]]:
        chosen = {split: part[sample_rows(content.target[part], rows)] for split, part in content.splits.items()}
        used = np.sort(np.concatenate(list(chosen.values())))
        short = replace(
            content,
            table=content.table.select(np.isin(np.arange(len(content.table)), used)),
            target=content.target[used],
            splits={split: np.searchsorted(used, part) for split, part in chosen.items()},
            images=[content.images[i] for i in used] if content.images else [],
            left_out=dict(content.left_out),
        )
        return short, {split: len(part) for split, part in content.splits.items()}

    def pack(self, source: Source) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        rows: Rows = source.load()
        packed = {part.name: part.pack(rows, self.images, self.scratch) for part in self.parts}
        splits_of_rows = self._with_content(rows, packed)
        numbers = [str(number) for number in rows.table.row_numbers]
        ids = numbers if self.id_column is None else rows.table.frame[self.id_column].tolist()
        names = np.array([name or number for name, number in zip(ids, numbers)])
        splits: dict[str, dict[str, Any]] = {}
        for split, chosen in splits_of_rows.items():
            splits[split] = {"target": rows.target[chosen], "name": names[chosen]}
            for name, content in packed.items():
                splits[split] |= self._arrays(name, content, split, chosen)
        for content in packed.values():
            for file in content.files.values():
                file.unlink()
        about = {name: content.about for name, content in packed.items()}
        return splits, {
            "class_names": rows.class_names,
            "parts": about,
            "part_counts": {name: content.counts for name, content in packed.items()},
            "source": {
                "kind": source.kind,
                "csv": str(self.csv),
                "left_out": rows.left_out,
                "levels": {k: v for part in about.values() for k, v in part.get("levels", {}).items()},
                "scaling": {k: v for part in about.values() for k, v in part.get("scaling", {}).items()},
            },
        }

    def _with_content(self, rows: Rows, packed: Mapping[str, Packed]) -> dict[str, np.ndarray]:
        """Split -> its rows that have at least some content; the others are counted in ``left_out``."""
        empty = np.ones(len(rows.table), dtype=bool)
        for name, content in packed.items():
            lacks = content.absent.copy()
            if "_missing" in content.arrays and name not in self._filled:
                lacks |= content.arrays["_missing"].reshape(len(lacks), -1).all(1)
            empty &= lacks
        if empty.any():
            rows.left_out["no content"] = int(empty.sum())
            log.warning(
                "%s: %d of %d rows left out: they have no content in any modality (the first is row %d)",
                self.csv,
                empty.sum(),
                len(empty),
                rows.table.row_numbers[int(empty.argmax())],
            )
        splits = {split: chosen[~empty[chosen]] for split, chosen in rows.splits.items()}
        splits = {split: chosen for split, chosen in splits.items() if len(chosen)}
        if "train" not in splits:
            raise UserError(f"{self.csv}: no training row has any content: correct the columns of dataset.modalities")
        if rows.target.ndim == 1:
            for split, chosen in splits.items():
                check_classes_of_rows(split, rows.target[chosen], rows.class_names)
        return splits

    def _arrays(self, name: str, content: Packed, split: str, chosen: np.ndarray) -> dict[str, Any]:
        """Arrays of one modality in a split.

        Args:
            chosen: (R,) rows of the split.
        """
        arrays: dict[str, Any] = {f"{name}{suffix}": array[chosen] for suffix, array in content.arrays.items()}
        if (gaps := arrays.get(f"{name}_missing")) is not None and not gaps.any():
            del arrays[f"{name}_missing"]
        if (absent := content.absent[chosen]).any():
            arrays[f"{name}_absent"] = absent
        for suffix, file in content.files.items():
            assert content.items is not None
            arrays[f"{name}{suffix}"] = link_file(file, self.scratch / f"{split}-{name}{suffix}.npy")
            arrays[f"{name}{suffix}.rows"] = content.items[chosen]
        return arrays

    # ---- what the packed content means -------------------------------------------------------------------------------

    def about(self, part: Part) -> dict[str, Any]:
        """Values that a part fitted when it packed the rows.

        Raises:
            UserError: the data are not packed.
        """
        return dict(self.packed_meta()["parts"][part.name])

    @property
    def modalities(self) -> list[Modality]:  # type: ignore[override]
        """What the parts make; fitted values are known once the data are packed."""
        return [part.modality(self.about(part)) for part in self.parts]

    @property
    def modality_names(self) -> list[str]:
        return [part.name for part in self.parts]

    @property
    def kinds(self) -> dict[str, str]:
        return {part.name: part.modality_kind for part in self.parts}

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        return list(self.packed_meta()["class_names"])

    def meta_without_rows(self) -> dict[str, Any]:
        return {key: value for key, value in super().meta_without_rows().items() if key != "part_counts"}

    def input_settings(self) -> dict[str, dict[str, Any]]:
        settings = {part.name: part.input_settings(self.about(part)) for part in self.parts}
        return {name: values for name, values in settings.items() if values}

    def save_tokenizer(self, folder: Path) -> None:
        if self.tokenizer is not None and "text" in self.kinds.values():
            save_tokenizer(self.tokenizer, folder)

    # ---- batches -----------------------------------------------------------------------------------------------------

    @property
    def _filled(self) -> set[str]:
        """Modalities whose missing cells count as observed."""
        return {part.name for part in self.parts if getattr(part, "natural_missing", "keep") == "fill"}

    def natural_cells(self, split: str) -> dict[str, np.ndarray]:
        return {name: cells for name, cells in super().natural_cells(split).items() if name not in self._filled}

    def natural_rows(self, split: str) -> dict[str, np.ndarray]:
        """See the base class; a table or series without any value counts as absent."""
        rows = super().natural_rows(split)
        for name, cells in self.natural_cells(split).items():
            if (empty := all_cells(cells)).any():
                rows[name] = rows.get(name, np.zeros_like(empty)) | empty
        return rows

    def transform(self, train: bool) -> Transform | None:
        transforms = [part.transform(self.about(part), train) for part in self.parts]
        used = [transform for transform in transforms if transform is not None]

        def apply(inputs: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
            for transform in used:
                inputs = transform(inputs, generator)
            return inputs

        return apply if used else None

    def choose(self) -> Mapping[str, Choose]:
        return {part.name: choose for part in self.parts if (choose := part.choose()) is not None}

    def pixels(self, name: str, images: Tensor) -> Tensor:
        part = next(part for part in self.parts if part.name == name)
        return part.pixels(images, self.about(part))

    # ---- new rows ----------------------------------------------------------------------------------------------------

    def encode_rows(
        self, frame: pd.DataFrame, images: Path, where: str, *, unknown: str = "refuse", id_column: str | None = None
    ) -> NewRows:
        encoder = self.row_encoder(frame, where, unknown)
        arrays: dict[str, np.ndarray] = {}
        for part in self.parts:
            arrays |= part.encode(encoder, images, self.about(part))
        names = encoder.names(id_column, None)
        return encoder.finish(names, arrays, encoder.target(self.row_labels, self.class_names))


def _packing_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a modality on which its packed content depends."""
    read_time = PARTS[options["kind"]].read_time if options.get("kind") in PARTS else ()
    return {key: value for key, value in options.items() if key not in read_time}
