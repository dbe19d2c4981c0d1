"""DVM: car adverts, a photograph and a table of 17 columns; which of 286 models (DVM-CAR, tables V2.0).

Huang, Chen, Luo, Zhou, "DVM-CAR", 2021 (https://deepvisualmarketing.github.io); table as built by TIP (Du et al.,
ECCV 2024, https://github.com/siyi-wind/TIP), used by DyMo, ICLR 2026. Two sources are read
(docs/reference/datasets.md §4):

- the raw download: ``<root>/tables_V2.0/*.csv`` and ``<root>/resized_DVM/<Maker>/<Genmodel>/<Year>/<Color>/*.jpg``,
  from which the table is built here by TIP's recipe;
- the files that TIP's notebook writes, ``<root>/features/*``.

What we do differently from TIP: numbers are standardised with mean and deviation of the training split;
``standardise=published`` takes those of all rows before the split, and of each split for the physical sizes, as TIP
does. The second stratified split is by the class of each row (TIP passes labels in another order).
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datasets.base import SPLITS
from datasets.coded_table import Coded, Content
from datasets.image_table_module import ImageTableModule
from datasets.readers.csv_files import check_columns, read_csv
from datasets.readers.tip_files import read_cardinalities, read_prepared
from datasets.scaling import mean_and_deviation, was_divided_by_rounding_error
from datasets.source import Source, file_digest
from utils.errors import UserError

log = logging.getLogger(__name__)

CATEGORICAL = ("Color", "Bodytype", "Gearbox", "Fuel_type")
PHYSICAL = ("Wheelbase", "Height", "Width", "Length")
ADVERT = (
    "Adv_year",
    "Adv_month",
    "Reg_year",
    "Runned_Miles",
    "Price",
    "Seat_num",
    "Door_num",
    "Entry_price",
    "Engine_size",
)
COLUMNS = (*CATEGORICAL, *PHYSICAL, *ADVERT)
RECIPE_VERSION = 1
SPLIT_SEED = 2022
MINIMUM_ADVERTS = 100
JITTER = 50  # of the physical sizes, to either side
JITTER_ORDER = ("Wheelbase", "Length", "Width", "Height")
# Models without a size in the tables, and sizes that are wrong there.
SIZES = {
    ("69_36", "Wheelbase"): 2612,
    ("29_20", "Wheelbase"): 2788,
    ("29_30", "Height"): 1805,
    ("59_29", "Wheelbase"): 3106,
    ("43_9", "Wheelbase"): 2580,
}
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
        demo: ``root`` holds demo data, whose counts are not those of the real ones.
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
        # Of TIP's prepared files the numbers are as they are.
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
            "dataset.root, or dataset.demo=true for a small stand-in"
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
        names = [str(c) for c in range(self.classes)]
        return Content(list(COLUMNS), cardinalities, names, splits, {"root": str(root)})

    def _build(self, root: Path, tables: dict[str, Path]) -> Content:
        frame, levels, models = build_table(tables, published=self.standardise == "published")
        target = frame["class"].to_numpy(np.int64)
        parts = split_rows(target, models)
        splits = {}
        self.rescaled = []
        train_rows = parts["train"]
        for split, rows in parts.items():
            part = frame.iloc[rows]
            fitted = frame.iloc[train_rows] if self.standardise == "train" else part
            columns = [part[name].to_numpy(np.float32) for name in CATEGORICAL]
            for name in (*PHYSICAL, *ADVERT):
                values = part[name].to_numpy(np.float64)
                if name in PHYSICAL or self.standardise == "train":
                    reference = fitted[name].to_numpy(np.float64)
                    values = standardised(values, reference)
                    if was_divided_by_rounding_error(reference, ddof=1) and name not in self.rescaled:
                        self.rescaled.append(name)
                columns.append(values.astype(np.float32))
            files = [root / IMAGE_FOLDER / folder / name for folder, name in zip(part["folder"], part["Image_name"])]
            splits[split] = Coded(np.stack(columns, 1), target[rows], files, part["Image_name"].to_numpy(str))
        scaling = {}
        if self.standardise == "train":
            fitted = frame.iloc[train_rows]
            for name in (*PHYSICAL, *ADVERT):
                reference = fitted[name].to_numpy(np.float64)
                zero, one = standardised(np.array([0.0, 1.0]), reference)
                scaling[name] = [float(reference.mean()), 1 / float(one - zero) if one > zero else 1.0]
        about = {"root": str(root), "levels": levels, "standardise": self.standardise, "scaling": scaling}
        return Content(list(COLUMNS), [len(levels[name]) for name in CATEGORICAL], models, splits, about)


def standardised(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """z-scores with mean and sample standard deviation (ddof 1) of ``reference``; a constant becomes 0."""
    mean, deviation = mean_and_deviation(reference, ddof=1)
    return (values - mean) / deviation


def split_rows(target: np.ndarray, models: list[str]) -> dict[str, np.ndarray]:
    """Half of the rows for test, a fifth of the rest for validation, both stratified (random_state 2022)."""
    from sklearn.model_selection import train_test_split

    try:
        rest, test = train_test_split(np.arange(len(target)), test_size=0.5, random_state=SPLIT_SEED, stratify=target)
        train, val = train_test_split(rest, test_size=0.2, random_state=SPLIT_SEED, stratify=target[rest])
    except ValueError as error:
        raise UserError(f"cannot divide {len(target)} adverts of {len(models)} models: {error}") from None
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}


def build_table(
    tables: dict[str, Path], published: bool = False, minimum: int = MINIMUM_ADVERTS
) -> tuple[pd.DataFrame, dict[str, list[str]], list[str]]:
    """The adverts that TIP keeps (docs/reference/datasets.md §4.2, steps 1 to 8).

    Args:
        tables: file name -> path.
        published: standardise the nine columns of the advert here, over all rows before any is left out.
        minimum: adverts that a model must have.

    Returns:
        A row an advert: codes, numbers, ``class``, ``folder`` and ``Image_name``; levels of the categorical columns;
        names of the classes (``Genmodel_ID``), in the order of their first advert.

    Raises:
        UserError: a column that is not there, or nothing left.
    """
    advert = read_csv(tables["Ad_table.csv"])
    if "Engin_size" in advert.columns:
        advert = advert.rename(columns={"Engin_size": "Engine_size"})
    own = ["Genmodel_ID", "Adv_ID", *CATEGORICAL, *(c for c in ADVERT if c != "Entry_price")]
    check_columns(advert, own, tables["Ad_table.csv"])
    price = read_csv(tables["Price_table.csv"])
    check_columns(price, ["Genmodel_ID", "Year", "Entry_price"], tables["Price_table.csv"])
    image = read_csv(tables["Image_table.csv"])
    check_columns(image, ["Image_ID", "Image_name"], tables["Image_table.csv"])

    image = image[["Image_ID", "Image_name"]].copy()
    image["Adv_ID"] = image["Image_ID"].str.split("$$", regex=False).str[:2].str.join("$$")
    image = image.drop_duplicates("Adv_ID")
    advert = advert[own].copy()
    advert["Engine_size"] = advert["Engine_size"].str.replace(r"[^0-9.]+$", "", regex=True)
    # Not all years and prices are numbers ("Uknown"): those are missing, like empty cells.
    for name in own:
        if name not in ("Genmodel_ID", "Adv_ID", *CATEGORICAL):
            advert[name] = pd.to_numeric(advert[name], errors="coerce")
    price = price[["Genmodel_ID", "Year", "Entry_price"]].apply(
        lambda c: c if c.name == "Genmodel_ID" else pd.to_numeric(c, errors="coerce")
    )
    price = price.drop_duplicates(["Genmodel_ID", "Year"])
    joined = advert.merge(price, left_on=["Genmodel_ID", "Reg_year"], right_on=["Genmodel_ID", "Year"])
    paired = joined.merge(image, on="Adv_ID")
    frame = paired.replace({name: {"": None} for name in CATEGORICAL})
    frame = frame.dropna(subset=[*CATEGORICAL, *ADVERT]).reset_index(drop=True)
    log.info(
        "DVM: %d adverts, %d with an entry price, %d of these with an image, %d without gaps",
        *(len(f) for f in (advert, joined, paired, frame)),
    )
    if not len(frame):
        raise UserError(
            f"no advert of {tables['Ad_table.csv']} has an entry price, an image and all columns: the tables do not "
            "belong together, unpack tables_V2.0.zip again"
        )
    levels = {}
    for name in CATEGORICAL:
        levels[name] = sorted(set(frame[name]))
        frame[name] = frame[name].map({level: code for code, level in enumerate(levels[name])}).astype(np.int64)
    if published:
        for name in ADVERT:
            numbers = frame[name].to_numpy(np.float64)
            frame[name] = standardised(numbers, numbers)
    counts = frame["Genmodel_ID"].map(frame["Genmodel_ID"].value_counts())
    frame = frame[counts >= minimum].reset_index(drop=True)
    models = list(dict.fromkeys(frame["Genmodel_ID"]))
    if len(models) < 2:
        raise UserError(f"{len(models)} car models have {minimum} adverts or more: the tables are not complete")
    frame["class"] = frame["Genmodel_ID"].map({model: c for c, model in enumerate(models)})
    fields = frame["Image_name"].str.split("$$", regex=False)
    frame["folder"] = fields.str[:4].str.join("/")
    log.info("DVM: %d adverts of %d car models with at least %d", len(frame), len(models), minimum)
    frame = add_sizes(frame, tables["Ad_table (extra).csv"])
    return frame, levels, models


def add_sizes(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The physical sizes of each advert, jittered.

    Gaps (0 or nothing) take the size of another advert of the model.

    Raises:
        UserError: a model without any size.
    """
    extra = read_csv(path)
    check_columns(extra, ["Adv_ID", *PHYSICAL], path)
    extra = extra.drop_duplicates("Adv_ID").set_index("Adv_ID")
    for name in PHYSICAL:
        size = pd.to_numeric(frame["Adv_ID"].map(extra[name]), errors="coerce").to_numpy(np.float64, copy=True)
        size[size == 0] = np.nan
        for (model, what), value in SIZES.items():
            if what == name:
                size[(frame["Genmodel_ID"] == model).to_numpy()] = value
        column = pd.Series(size)
        column = column.fillna(column.groupby(frame["Genmodel_ID"].to_numpy()).transform("first"))
        if (absent := column.isna()).any():
            lacking = list(dict.fromkeys(frame["Genmodel_ID"][absent]))
            raise UserError(
                f"{path}: {len(lacking)} car models have no {name} ({', '.join(lacking[:5])}; {int(absent.sum())} "
                "adverts): add a value for one of their adverts"
            )
        frame[name] = column.to_numpy()
    jitter = random.Random(SPLIT_SEED)
    for name in JITTER_ORDER:
        frame[name] += [jitter.randint(-JITTER, JITTER) for _ in range(len(frame))]
    return frame
