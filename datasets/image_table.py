"""Image + table data sets: the base of all of them, and `ImageTable`, a user's own CSV file.

A table row is categorical codes first, then standardised numbers. Cells that the source never had keep the training
mean or the commonest level as content, and are marked in ``<table>_missing`` of the packed store. Everything that is
fitted (levels, means, standard deviations) is fitted on the training split. Images are decoded once.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from datasets.batch import Modality
from datasets.loader import Transform
from datasets.readers.csv_rows import CsvRows
from datasets.readers.images import ImageReader, check_sides, decode_images
from datasets.readers.pictures import check_bits
from datasets.readers.spellings import check_quoted, counted, similar_spellings, spellings, unquoted
from datasets.scale import AS_IT_IS, Scale
from datasets.scaling import is_constant, mean_and_deviation, was_divided_by_rounding_error
from datasets.source import Source, SourcedDataModule, alone, sha256
from datasets.transforms import ColumnPool, ImageTableTransform, JointAugmentation
from utils.errors import UserError

log = logging.getLogger(__name__)

PACKING_VERSION = 1


@dataclass
class Coded:
    """One split, ready to be packed.

    Attributes:
        table: (N, F) float32, codes first.
        target: (N,) int64, or (N, C) float32 with -1 for 'no label'.
        images: a file a row, None where there is none.
        names: (N,) what the rows are called in the source.
        gaps: (N, F) bool, cells that the source does not have; None = all are there.
    """

    table: np.ndarray
    target: np.ndarray
    images: Sequence[Path | None]
    names: np.ndarray
    gaps: np.ndarray | None = None


@dataclass
class Content:
    """A whole data set, ready to be packed; ``about`` are plain values for ``meta.json``."""

    columns: list[str]
    cardinalities: list[int]
    class_names: list[str]
    splits: dict[str, Coded]
    about: dict[str, Any] = field(default_factory=dict)


class ImageTableModule(SourcedDataModule):
    """Base of the image + table data sets; a subclass implements :meth:`find_source`, which loads a :class:`Content`.

    Args:
        store: folder of the packed store.
        side: of the images that a model gets.
        stored_side: of the images in the store, from which training crops are cut; None = ``side``.
        channels: 3 or 1.
        augmentation: of training batches, None = none.
        natural_missing: ``keep`` marks cells that the source does not have as missing; ``fill`` lets their stored
            content (training mean, commonest level) count as present.
        image_bits: in use of 16-bit images, None = 16 (see :func:`datasets.readers.pictures.open_picture`).
        **kwargs: see :class:`MultimodalDataModule`.

    Raises:
        UserError: an impossible size or option.
    """

    read_time = ("augmentation", "natural_missing")
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
        self.rescaled: list[str] = []  # columns that READING_RULES 1 divided by a rounding error

    def _source(self, kind: str, settings: Any, load: Callable[[], Content]) -> Source:
        packing = [self.stored_side, self.channels] + ([] if self.image_bits is None else [self.image_bits])
        load_once = cache(load)

        def pictures() -> list[Path]:
            return [path for coded in load_once().splits.values() for path in coded.images if path]

        return Source(kind, sha256([PACKING_VERSION, kind, settings, *packing]), {}, load_once, pictures)

    @property
    def modalities(self) -> list[Modality]:  # type: ignore[override]
        """Image and table; the columns of the table are known once the data are packed."""
        meta = self.packed_meta()
        return [
            Modality(self.image_name, "image", (self.channels, self.side, self.side)),
            Modality(
                self.table_name,
                "table",
                (len(meta["columns"]),),
                tuple(meta["cardinalities"]),
                tuple(meta["columns"]),
                scale=self.number_scale,
            ),
        ]

    @property
    def number_scale(self) -> Scale:
        """What makes z-scores of the table's numbers."""
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

    def may_read_differently(self) -> bool:
        """A column that was divided by a rounding error is constant in training, and not 0."""
        packed, gaps = self.store.split("train"), f"{self.table_name}_missing"
        first = len(self.packed_meta()["cardinalities"])
        numbers = packed.read(self.table_name).numpy()[:, first:]
        known = np.ma.masked_array(numbers, packed.read(gaps).numpy()[:, first:] if packed.has(gaps) else False)
        lowest = known.min(0)
        return bool(((lowest == known.max(0)) & (lowest != 0)).filled(False).any()) if numbers.size else False

    @property
    def shares_images(self) -> bool:
        """Whether several stores show the same images, which are then decoded once (folds of a cross-validation)."""
        return False

    def _decode(self, content: Content) -> dict[str, dict[str, Any]]:
        """Split -> arrays of its images."""
        reader = ImageReader(self.stored_side, self.channels, resample=self.resample, bits=self.image_bits)
        name = self.image_name
        lists = {split: list(coded.images) for split, coded in content.splits.items()}
        given: dict[str, list[Path]] = {split: [p for p in paths if p] for split, paths in lists.items()}
        if not self.shares_images and all(len(given[split]) == len(paths) for split, paths in lists.items()):
            return {split: {name: file} for split, file in decode_images(given, self.scratch, reader).items()}
        files = sorted({path for paths in given.values() for path in paths})
        folder = self.scratch
        if self.shares_images:
            digest = sha256([repr(reader), [str(path) for path in files]])[:10]
            folder = self.store.folder.with_name(f"{self.name}-images-{digest}")
        # Another fold may be at it; of its own scratch folder this process has the lock.
        with alone(folder) if self.shares_images else nullcontext():
            decoded = decode_images({"images": files}, folder, reader)["images"]
        place = {path: i for i, path in enumerate(files)}
        found = {}
        for split, paths in lists.items():
            self.scratch.mkdir(parents=True, exist_ok=True)
            link = self.scratch / f"{split}.npy"
            link.unlink(missing_ok=True)
            try:
                os.link(decoded, link)  # the same bytes under another name: no copy, and either may be deleted
            except OSError as error:
                log.warning("%s: the file system has no hard links (%s): images are copied", link, error.strerror)
                shutil.copyfile(decoded, link)
            absent = np.array([path is None for path in paths])
            found[split] = {
                name: link,
                f"{name}.rows": np.array([0 if path is None else place[path] for path in paths], dtype=np.int64),
                **({f"{name}_absent": absent} if absent.any() else {}),
            }
        return found


def check_content(content: Content) -> None:
    """What every source must keep: rows that pair, codes within their cardinality, all classes in training.

    Raises:
        UserError: names split, column and count.
    """
    constant = [
        name
        for name, values in zip(content.columns, content.splits["train"].table.T if "train" in content.splits else ())
        if len(values) and (values == values[0]).all()
    ]
    if constant:
        log.warning(
            "%d of %d columns of the table are constant in training (%s%s): they say nothing",
            len(constant),
            len(content.columns),
            ", ".join(constant[:3]),
            ", ..." if len(constant) > 3 else "",
        )
    for split, coded in content.splits.items():
        n = {"table": len(coded.table), "labels": len(coded.target), "images": len(coded.images)}
        if len(set(n.values())) > 1:
            raise UserError(
                f"split '{split}': {n['table']} table rows, {n['labels']} labels and {n['images']} images do not pair: "
                "give files of the same rows"
            )
        if coded.table.shape[1:] != (len(content.columns),):
            raise UserError(
                f"split '{split}': the table has {coded.table.shape[1]} columns, expected {len(content.columns)}"
            )
        for j, levels in enumerate(content.cardinalities):
            codes = coded.table[:, j]
            bad = (codes != np.floor(codes)) | (codes < 0) | (codes >= levels)
            if bad.any():
                raise UserError(
                    f"split '{split}', column '{content.columns[j]}': {int(bad.sum())} values are no code from 0 to "
                    f"{levels - 1} (row {int(bad.argmax())}: {codes[bad.argmax()]:g}): the file of cardinalities is "
                    "not that of this table, or its columns are in another order"
                )
        if not np.isfinite(coded.table).all():
            row, column = np.argwhere(~np.isfinite(coded.table))[0]
            raise UserError(
                f"split '{split}', column '{content.columns[column]}': {int((~np.isfinite(coded.table)).sum())} cells "
                f"of the table are no finite number (the first in row {row}): impute or remove them"
            )
        if coded.target.ndim == 1:
            outside = (coded.target < 0) | (coded.target >= len(content.class_names))
            if outside.any():
                raise UserError(
                    f"split '{split}': {int(outside.sum())} labels are outside 0 to {len(content.class_names) - 1} "
                    f"(row {int(outside.argmax())}: {coded.target[outside.argmax()]}): check dataset.num_classes and "
                    "the file of labels"
                )
            absent = sorted(set(range(len(content.class_names))) - set(coded.target.tolist()))
            if absent and split == "train":
                names = ", ".join(content.class_names[c] for c in absent[:5])
                raise UserError(
                    f"no training row of {len(absent)} of {len(content.class_names)} classes ({names}"
                    f"{', ...' if len(absent) > 5 else ''}): they cannot be learned, remove them from the classes or "
                    "divide the rows anew"
                )
            if absent:
                log.warning(
                    "split '%s' has no row of %d classes: scores of this split leave them out", split, len(absent)
                )
    if "train" not in content.splits:
        raise UserError(f"there is no training split (only {', '.join(content.splits)}): nothing can be learned")


# ----------------------------------------------------------------------------------------------------- a user's own CSV


class ImageTable(CsvRows, ImageTableModule):
    """An image and a table row a sample, from one CSV file with a header; no Python needed (``docs/your-data.md``).

    Args:
        categorical: column -> its levels in order, or a mapping level -> the cell values that stand for it, or None =
            the values of the training split, sorted.
        continuous: columns of numbers, standardised with mean and standard deviation of the training split.
        unseen: a categorical value that is no level is refused (``refuse``) or counts as missing (``missing``).
        scaling: of the continuous columns, fitted on the training split: ``standard`` (mean 0, deviation 1) or
            ``min_max`` (0 to 1 there; other splits are not clipped). A constant column is divided by 1.
        **kwargs: see :class:`CsvRows` and :class:`ImageTableModule`.
    """

    images_may_lack = True

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
        self.categorical: dict[str, list[str] | None] = {}
        self.level_values: dict[str, dict[str, list[str]]] = {}  # of the columns whose levels stand for several values
        self._unquoted_levels: dict[str, list[Any]] = {}
        for column, given in (categorical or {}).items():
            values = None if given is None else spellings(given, f"categorical.{column}", "level")
            self.categorical[str(column)] = None if values is None else list(values)
            self._unquoted_levels[str(column)] = unquoted(given)
            if isinstance(given, Mapping) and values is not None:
                self.level_values[str(column)] = values
        self.continuous = [str(column) for column in continuous]
        self.unseen, self.scaling = unseen, scaling
        self._number_scale: Scale | None = None
        columns = [*self.categorical, *self.continuous]
        if not columns:
            raise UserError("dataset.categorical and dataset.continuous are empty: name at least one column")
        if double := [c for c, n in Counter(columns).items() if n > 1]:
            raise UserError(f"column '{double[0]}' is both categorical and continuous: name it once")
        if leaks := sorted(set(columns) & set(self.labels)):
            raise UserError(f"column '{leaks[0]}' is a label and an input: take it out of the inputs")
        if self.unseen not in ("refuse", "missing"):
            raise UserError(f"dataset.unseen={self.unseen}: must be refuse or missing")
        if self.scaling not in ("standard", "min_max"):
            raise UserError(f"dataset.scaling={self.scaling}: must be standard or min_max")

    @property
    def shares_images(self) -> bool:
        return self.fold is not None

    @property
    def number_scale(self) -> Scale:
        """Of numbers between 0 and 1, their mean and deviation over the training rows that have them."""
        if self.scaling == "standard" or not self.store.has_split("train"):
            return AS_IT_IS
        if self._number_scale is None:
            first = len(self.packed_meta()["cardinalities"])
            packed, gaps = self.split("train"), f"{self.table_name}_missing"
            numbers = packed.read(self.table_name).double().numpy()[:, first:]
            known = np.ma.masked_array(numbers, packed.read(gaps).numpy()[:, first:] if packed.has(gaps) else False)
            mean, deviation = known.mean(0).filled(0.0), known.std(0).filled(0.0)
            # A constant column is not divided, whatever the rounding error of its deviation.
            deviation = np.where((known.max(0) > known.min(0)).filled(False) & (deviation > 0), deviation, 1.0)
            # x * d + m is the z-score.
            self._number_scale = Scale(tuple((-mean / deviation).tolist()), tuple((1 / deviation).tolist()))
        return self._number_scale

    def find_source(self) -> Source:
        settings = {
            **self.row_settings(),
            "categorical": list(self.categorical.items()),
            **({"levels": list(self.level_values.items())} if self.level_values else {}),
            "continuous": self.continuous,
            "unseen": self.unseen,
            "scaling": self.scaling,
        }
        return self._source("csv", settings, self._load)

    def _load(self) -> Content:
        rows = self.read_rows([*self.categorical, *self.continuous])
        table, gaps, levels, scaling = self._code(rows.frame, rows.missing, rows.splits)
        names = rows.frame[self.image].to_numpy(str)
        parts = {
            split: Coded(table[r], rows.target[r], [rows.images[int(i)] for i in r], names[r], gaps[r])
            for split, r in rows.splits.items()
        }
        about = {"csv": str(self.csv), "levels": levels, "scaling": scaling, "left_out": rows.left_out}
        columns = [*self.categorical, *self.continuous]
        return Content(columns, [len(v) for v in levels.values()], rows.class_names, parts, about)

    def _code(
        self, frame: pd.DataFrame, missing: pd.DataFrame, rows: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, list[str]], dict[str, list[float]]]:
        """Table (N, F), gaps (N, F), levels of the categorical columns, zero and unit of the others."""
        train = rows.get("train", np.zeros(0, dtype=np.int64))
        table = np.zeros((len(frame), len(self.categorical) + len(self.continuous)), dtype=np.float32)
        gaps = missing[[*self.categorical, *self.continuous]].to_numpy(bool, copy=True)
        levels: dict[str, list[str]] = {}
        self.rescaled = []

        def seen_in_training(name: str, j: int, values: np.ndarray) -> np.ndarray:
            seen = values[train][~gaps[train, j]]
            if not len(seen):
                fold = "" if self.fold is None else f" of fold {self.fold}"
                raise UserError(
                    f"{self.csv}: column '{name}' has no value in the {len(train)} rows of the training split{fold}: "
                    "leave it out"
                )
            return seen

        for j, (name, given) in enumerate(self.categorical.items()):
            check_quoted(self._unquoted_levels.get(name, []), frame[name], f"dataset.categorical.{name}", self.csv)
            cells = frame[name]
            if name in self.level_values:
                level_of = {value: level for level, listed in self.level_values[name].items() for value in listed}
                cells = cells.map(lambda cell, level_of=level_of: level_of.get(cell, cell))
            elif similar := similar_spellings(frame[name][~gaps[:, j]]):
                log.warning(
                    "%s: values in column '%s' differ only in case or blanks: %s; to merge them, list the values of "
                    "each level: dataset.categorical.%s={level: [value, value]}",
                    self.csv,
                    name,
                    "; ".join(similar),
                    name,
                )
            values = cells.to_numpy(str)
            seen = seen_in_training(name, j, values)
            levels[name] = given or sorted(set(seen))
            if not given and len(seen) > 20 and len(levels[name]) > 0.9 * len(seen):
                raise UserError(
                    f"{self.csv}: column '{name}' has {len(levels[name])} values in {len(seen)} training rows: it "
                    "names rows, take it out (of dataset.categorical, or of the table), or list its levels there"
                )
            unseen = ~np.isin(values, levels[name]) & ~gaps[:, j]
            if self.unseen == "refuse":
                found = counted(values[unseen])
                origin = "dataset.categorical lists" if given else "the training split has"
                self.refuse(
                    unseen,
                    f"values in column '{name}' are none of the {len(levels[name])} that {origin}, {found}",
                    "list them in dataset.categorical, or set dataset.unseen=missing",
                )
            if unseen.any():
                log.warning(
                    "%s: %d values in column '%s' are none of the %d that training has, they count as missing: %s",
                    self.csv,
                    unseen.sum(),
                    name,
                    len(levels[name]),
                    counted(values[unseen]),
                )
            gaps[:, j] |= unseen
            codes = {level: code for code, level in enumerate(levels[name])}
            known = seen[np.isin(seen, levels[name])]
            if not len(known):
                raise UserError(
                    f"{self.csv}: column '{name}' has none of the levels {', '.join(levels[name])} in the training "
                    "split: correct dataset.categorical, or leave it out"
                )
            common = codes[Counter(known).most_common(1)[0][0]]
            table[:, j] = [common if gone else codes[v] for v, gone in zip(values, gaps[:, j])]
        scaling: dict[str, list[float]] = {}
        for j, name in enumerate(self.continuous, len(self.categorical)):
            numbers = self.dialect.numbers(frame[name]).to_numpy(np.float64, copy=True)
            wrong = ~np.isfinite(numbers) & ~gaps[:, j]
            found = counted(frame[name][wrong])
            self.refuse(
                wrong,
                f"cells in column '{name}' are no numbers, {found}",
                "mend them, name them in dataset.missing_values, or make the column categorical",
            )
            seen = seen_in_training(name, j, numbers)
            if self.scaling == "min_max":
                start, width = float(seen.min()), float(seen.max() - seen.min())
            else:
                start, width = map(float, mean_and_deviation(seen, ddof=1))
            scaling[name] = [start, width or 1.0]
            # A gap holds the mean of training, whatever the scale.
            mean = start if is_constant(seen) else seen.mean()
            table[:, j] = (np.where(gaps[:, j], mean, numbers) - start) / (width or 1.0)
            if self.scaling == "standard" and was_divided_by_rounding_error(seen, ddof=1):
                self.rescaled.append(name)
        return table, gaps, levels, scaling


def _tail(path: Path, anchor: str) -> str:
    parts = path.parts
    return str(Path(*parts[parts.index(anchor) + 1 :])) if anchor in parts else path.name


def _moved(path: Path, anchor: str, root: Path) -> Path:
    """``path``, or where it is under ``root`` if it does not exist on this machine."""
    if anchor not in path.parts or path.is_file():
        return path
    return root / anchor / _tail(path, anchor)
