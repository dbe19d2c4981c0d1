"""Base of the data sets with an image and a table.

A table row is categorical codes first, then standardised numbers. Cells without a value in the source hold the training
mean or the commonest level, and are marked in ``<table>_missing`` of the packed store. Levels, means and standard
deviations are fitted on the training split. Images are decoded once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from datasets.batch import Modality
from datasets.coded_table import Content, check_content
from datasets.loader import Transform
from datasets.readers.images import ImageReader, check_sides, decode_images
from datasets.readers.pictures import check_bits
from datasets.scale import AS_IT_IS, Scale
from datasets.source import Source, SourcedDataModule, alone, sample_rows, sha256
from datasets.storage import PackedSplit, link_file
from datasets.transforms import ColumnPool, ImageTableTransform, JointAugmentation
from utils.errors import UserError

log = logging.getLogger(__name__)

PACKING_VERSION = 1


class ImageTableModule(SourcedDataModule):
    """Base of the image + table data sets; a subclass implements :meth:`find_source`, which loads a :class:`Content`.

    Args:
        store: folder of the packed store.
        side: of the images that a model gets, in pixels.
        stored_side: of the images in the store, from which training crops are cut; None = ``side``.
        channels: 3 or 1.
        augmentation: of training batches, None = none.
        natural_missing: ``keep`` marks cells without a value in the source as missing; ``fill`` lets their stored
            content (training mean, commonest level) count as observed.
        image_bits: in use of 16-bit images, None = 16 (see :func:`datasets.readers.pictures.open_picture`).
        **kwargs: see :class:`datasets.base.MultimodalDataModule`.

    Attributes:
        rescaled: columns that READING_RULES 1 divided by a rounding error, filled in while the source loads.

    Raises:
        UserError: an impossible size or option.
    """

    read_time = ("augmentation", "natural_missing")
    later: ClassVar[tuple[str, ...]] = ("image_bits",)
    image_name = "image"
    table_name = "table"
    resample = Image.Resampling.BILINEAR

    def __init__(
        self,
        store: str,
        *,
        side: int = 128,
        stored_side: int | None = None,
        channels: int = 3,
        augmentation: JointAugmentation | None = None,
        natural_missing: str = "keep",
        image_bits: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        self.side, self.stored_side, self.channels = side, stored_side or side, channels
        self.augmentation, self.natural_missing = augmentation, natural_missing
        self.image_bits = image_bits
        check_sides(side, self.stored_side)
        check_bits(image_bits)
        if channels not in (1, 3):
            raise UserError(f"dataset.channels={channels}: must be 3 or 1")
        if natural_missing not in ("keep", "fill"):
            raise UserError(f"dataset.natural_missing={natural_missing}: must be keep or fill")
        self._pool: ColumnPool | None = None
        self.rescaled: list[str] = []

    def content_source(self, kind: str, settings: Any, load: Callable[[], Content]) -> Source:
        """The source of a :class:`Content`, with the packing options in its signature.

        Args:
            kind: of the source, in one word.
            settings: plain values that change whenever the content does.
            load: reads the content; called once.
        """
        packing = [self.stored_side, self.channels] + ([] if self.image_bits is None else [self.image_bits])
        load_once = cache(load)

        def pictures() -> list[Path]:
            return [path for coded in load_once().splits.values() for path in coded.images if path]

        return Source(kind, sha256([PACKING_VERSION, kind, settings, *packing]), {}, load_once, pictures)

    @property
    def modalities(self) -> list[Modality]:  # type: ignore[override]
        """Image and table; the columns of the table are known once the data are packed."""
        meta = self.packed_meta()
        table = Modality(
            self.table_name,
            "table",
            shape=(len(meta["columns"]),),
            cardinalities=tuple(meta["cardinalities"]),
            columns=tuple(meta["columns"]),
            scale=self.number_scale,
        )
        return [Modality(self.image_name, "image", (self.channels, self.side, self.side)), table]

    @property
    def number_scale(self) -> Scale:
        """Scale that turns the table's numbers into z-scores."""
        return AS_IT_IS

    @property
    def kinds(self) -> dict[str, str]:
        return {self.image_name: "image", self.table_name: "table"}

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        return list(self.packed_meta()["class_names"])

    def natural_cells(self, split: str) -> dict[str, np.ndarray]:
        return {} if self.natural_missing == "fill" else super().natural_cells(split)

    def transform(self, train: bool) -> Transform:
        """Resize for evaluation, augment for training."""
        image, table = self.image_name, self.table_name
        if not train or self.augmentation is None:
            return ImageTableTransform(image, table, self.side)
        if self._pool is None:
            packed = self.split("train")
            gaps = packed.read(f"{table}_missing") if packed.has(f"{table}_missing") else None
            self._pool = ColumnPool(packed.read(table), gaps)
        return ImageTableTransform(image, table, self.side, self.augmentation, self._pool)

    def pack(self, source: Source) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        content: Content = source.load()
        check_content(content)
        self._pool = None
        splits: dict[str, dict[str, Any]] = {}
        missing_cells = {}
        pixels = self._decode(content)
        for split, coded in content.splits.items():
            splits[split] = {
                **pixels[split],
                self.table_name: coded.table.astype(np.float32),
                "target": coded.target,
                "name": coded.names.astype(str),
            }
            if coded.gaps is not None and coded.gaps.any():
                splits[split][f"{self.table_name}_missing"] = coded.gaps
                missing_cells[split] = dict(zip(content.columns, coded.gaps.sum(0).tolist()))
        changes = [f"constant columns {', '.join(self.rescaled)}"] if self.rescaled else []
        return splits, {
            "reading_changes": changes,
            "columns": content.columns,
            "cardinalities": content.cardinalities,
            "class_names": content.class_names,
            "missing_cells": missing_cells,
            "source": {"kind": source.kind, **content.about},
        }

    def shorten(self, content: Content, rows: int) -> tuple[Content, dict[str, int]]:
        counts = {split: len(coded.target) for split, coded in content.splits.items()}
        splits = {split: coded.keep(sample_rows(coded.target, rows)) for split, coded in content.splits.items()}
        return replace(content, splits=splits), counts

    def observed_numbers(self, packed: PackedSplit) -> np.ma.MaskedArray:
        """(N, F) numbers of the continuous columns of a split; cells without a value in the source are masked."""
        gaps, first = f"{self.table_name}_missing", len(self.packed_meta()["cardinalities"])
        numbers = packed.read(self.table_name).double().numpy()[:, first:]
        return np.ma.masked_array(numbers, packed.read(gaps).numpy()[:, first:] if packed.has(gaps) else False)

    def may_read_differently(self) -> bool:
        """Whether a column is constant in training and not 0, as columns that were divided by a rounding error are."""
        numbers = self.observed_numbers(self.store.split("train"))
        if not numbers.size:
            return False
        lowest = numbers.min(0)
        return bool(((lowest == numbers.max(0)) & (lowest != 0)).filled(False).any())

    @property
    def has_shared_images(self) -> bool:
        """Whether stores (folds of a cross-validation) have the same images, which are then decoded once for all."""
        return False

    @property
    def image_reader(self) -> ImageReader:
        """What makes stored images of files."""
        return ImageReader(self.stored_side, self.channels, resample=self.resample, bits=self.image_bits)

    def _decode(self, content: Content) -> dict[str, dict[str, Any]]:
        """Split -> arrays of its images."""
        reader = self.image_reader
        lists = {split: list(coded.images) for split, coded in content.splits.items()}
        given: dict[str, list[Path]] = {split: [p for p in paths if p] for split, paths in lists.items()}
        if not self.has_shared_images and all(len(given[split]) == len(paths) for split, paths in lists.items()):
            decoded = decode_images(given, self.scratch, reader)
            return {split: {self.image_name: file} for split, file in decoded.items()}
        files = sorted({path for paths in given.values() for path in paths})
        folder = self.scratch
        if self.has_shared_images:
            digest = sha256([repr(reader), [str(path) for path in files]])[:10]
            folder = self.store.folder.with_name(f"{self.name}-images-{digest}")
        # Another fold may be decoding them; of its scratch folder this process has the lock.
        with alone(folder) if self.has_shared_images else nullcontext():
            images = decode_images({"images": files}, folder, reader)["images"]
        row_of = {path: i for i, path in enumerate(files)}
        arrays = {}
        for split, paths in lists.items():
            absent = np.array([path is None for path in paths])
            arrays[split] = {
                self.image_name: link_file(images, self.scratch / f"{split}.npy"),
                f"{self.image_name}.rows": np.array(
                    [0 if path is None else row_of[path] for path in paths], dtype=np.int64
                ),
                **({f"{self.image_name}_absent": absent} if absent.any() else {}),
            }
        return arrays
