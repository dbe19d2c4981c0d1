"""DVM: car adverts, a photograph and a table of 17 columns; which of 286 models (DVM-CAR, tables V2.0).

Huang, Chen, Luo, Zhou, "DVM-CAR", 2021 (https://deepvisualmarketing.github.io); table as built by TIP (Du et al.,
ECCV 2024, https://github.com/siyi-wind/TIP), used by DyMo, ICLR 2026. Two sources are read
(docs/reference/datasets.md §4):

- the raw download: ``<root>/tables_V2.0/*.csv`` and ``<root>/resized_DVM/<Maker>/<Genmodel>/<Year>/<Color>/*.jpg``,
  from which :mod:`datasets.dvm_table` builds the table by TIP's recipe;
- the files that TIP's notebook writes, ``<root>/features/*``.

Differences from TIP: numbers are standardised with mean and deviation of the training split;
``standardise=published`` uses those of all rows before the split, and of each split for the physical sizes, as TIP
does. The second stratified split is by the class of each row (TIP passes labels in another order).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import SPLITS
from datasets.coded_table import Coded, content_of_coded
from datasets.content import Content
from datasets.dvm_table import ADVERT, CATEGORICAL, COLUMNS, PHYSICAL, build_table, standardised
from datasets.image_table_module import ImageTableModule
from datasets.readers.tip_files import read_cardinalities, read_prepared
from datasets.scaling import was_divided_by_rounding_error
from datasets.source import Source, file_digest
from utils.errors import UserError

log = logging.getLogger(__name__)

RECIPE_VERSION = 1
SPLIT_SEED = 2022
IMAGE_FOLDER = "resized_DVM"
TABLES = ("Ad_table.csv", "Ad_table (extra).csv", "Image_table.csv", "Price_table.csv")
PREPARED_LENGTHS = "tabular_lengths_all_views_physical_reordered.pt"
PREPARED_TABLE = "dvm_features_{split}_noOH_all_views_physical_jittered_50_reordered.csv"
PREPARED_LABELS = "labels_model_all_{split}_all_views.pt"
PREPARED_PATHS = "{split}_paths_all_views.pt"


class DVM(ImageTableModule):
    """DVM from the raw download or from TIP's prepared files.

    Args:
        store: folder of the packed store.
        root: folder of the source.
        demo: ``root`` holds demo data, whose counts differ from the published ones.
        num_classes: of the prepared files.
        standardise: train | published.
        **kwargs: see :class:`ImageTableModule`.
    """

    paths = ("root",)
    name = "DVM"
    image_name = "img"
    table_name = "tabular"
    task = "multiclass"

    def __init__(
        self,
        *,
        store: str,
        root: str,
        demo: bool = False,
        num_classes: int = 286,
        standardise: str = "train",
        **kwargs: Any,
    ) -> None:
        super().__init__(store, **kwargs)
        if standardise not in ("train", "published"):
            raise UserError(f"dataset.standardise={standardise}: must be train or published")
        self.root, self.demo, self.classes, self.standardise = Path(root), demo, num_classes, standardise

    def input_settings(self) -> dict[str, dict[str, Any]]:
        # The numbers of TIP's prepared files are used unchanged.
        raw = (self.packed_meta().get("source") or {}).get("kind") == "raw"
        return {self.table_name: {"standardise": self.standardise}} if raw else {}

    def find_source(self) -> Source:
        root = self.root
        features = root / "features"
        if (features / PREPARED_LENGTHS).is_file():
            files = [
                features / pattern.format(split=split)
                for split in SPLITS
                for pattern in (PREPARED_TABLE, PREPARED_LABELS, PREPARED_PATHS)
            ]
            digests = {f.name: file_digest(f) for f in [features / PREPARED_LENGTHS, *files] if f.is_file()}
            return self.content_source("prepared", [digests, self.classes], lambda: self._read_prepared(root, features))
        tables = {name: root / "tables_V2.0" / name for name in TABLES}
        if any(path.is_file() for path in tables.values()):
            absent = [name for name, path in tables.items() if not path.is_file()]
            if absent:
                raise UserError(f"{root / 'tables_V2.0'} lacks {', '.join(absent)}: unpack tables_V2.0.zip completely")
            digests = {name: file_digest(path) for name, path in tables.items()}
            settings = [digests, self.standardise, RECIPE_VERSION]
            return self.content_source("raw", settings, lambda: self._build(root, tables))
        raise UserError(
            f"no DVM in {root}: looked for tables_V2.0/Ad_table.csv (with resized_DVM/, from "
            f"https://deepvisualmarketing.github.io) and for features/{PREPARED_LENGTHS} (TIP's files): set "
            "dataset.root, or dataset.demo=true for small demo data"
        )

    def _read_prepared(self, root: Path, features: Path) -> Content:
        cardinalities = read_cardinalities(features / PREPARED_LENGTHS, COLUMNS)
        splits = {
            split: read_prepared(
                features / PREPARED_TABLE.format(split=split),
                features / PREPARED_LABELS.format(split=split),
                features / PREPARED_PATHS.format(split=split),
                COLUMNS,
                IMAGE_FOLDER,
                root,
            )
            for split in SPLITS
        }
        classes = [str(c) for c in range(self.classes)]
        names = (self.image_name, self.table_name)
        return content_of_coded(names, COLUMNS, cardinalities, classes, splits, {"root": str(root)})

    def _build(self, root: Path, tables: dict[str, Path]) -> Content:
        frame, levels, models = build_table(tables, published=self.standardise == "published")
        target = frame["class"].to_numpy(np.int64)
        parts = split_rows(target, models)
        train = frame.iloc[parts["train"]]
        splits = {}
        rescaled: list[str] = []
        for split, rows in parts.items():
            part = frame.iloc[rows]
            fitted = train if self.standardise == "train" else part
            columns = [part[name].to_numpy(np.float32) for name in CATEGORICAL]
            for name in (*PHYSICAL, *ADVERT):
                values = part[name].to_numpy(np.float64)
                if name in PHYSICAL or self.standardise == "train":
                    reference = fitted[name].to_numpy(np.float64)
                    values = standardised(values, reference)
                    if was_divided_by_rounding_error(reference, ddof=1) and name not in rescaled:
                        rescaled.append(name)
                columns.append(values.astype(np.float32))
            files = [root / IMAGE_FOLDER / folder / name for folder, name in zip(part["folder"], part["Image_name"])]
            splits[split] = Coded(np.stack(columns, 1), target[rows], files, part["Image_name"].to_numpy(str))
        scaling = {}
        if self.standardise == "train":
            for name in (*PHYSICAL, *ADVERT):
                reference = train[name].to_numpy(np.float64)
                zero, one = standardised(np.array([0.0, 1.0]), reference)
                scaling[name] = [float(reference.mean()), 1 / float(one - zero) if one > zero else 1.0]
        return content_of_coded(
            (self.image_name, self.table_name),
            COLUMNS,
            [len(levels[name]) for name in CATEGORICAL],
            models,
            splits,
            {"root": str(root), "standardise": self.standardise},
            fitted={"levels": levels, "scaling": scaling},
            rescaled=rescaled,
        )


def split_rows(target: np.ndarray, models: list[str]) -> dict[str, np.ndarray]:
    """Half of the rows for test, a fifth of the others for validation, both stratified (random_state 2022)."""
    from sklearn.model_selection import train_test_split

    try:
        others, test = train_test_split(np.arange(len(target)), test_size=0.5, random_state=SPLIT_SEED, stratify=target)
        train, val = train_test_split(others, test_size=0.2, random_state=SPLIT_SEED, stratify=target[others])
    except ValueError as error:
        raise UserError(f"cannot divide {len(target)} adverts of {len(models)} models: {error}") from None
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}
