"""The table of DVM, built from the raw tables by TIP's recipe (docs/reference/datasets.md §4.2)."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pandas as pd

from datasets.readers.csv_files import check_columns, read_csv
from datasets.scaling import mean_and_deviation
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
JITTER_SEED = 2022
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


def standardised(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """z-scores with mean and sample standard deviation (ddof 1) of ``reference``; a constant becomes 0."""
    mean, deviation = mean_and_deviation(reference, ddof=1)
    return (values - mean) / deviation


def build_table(
    tables: dict[str, Path], published: bool = False, minimum: int = MINIMUM_ADVERTS
) -> tuple[pd.DataFrame, dict[str, list[str]], list[str]]:
    """Build the table of the adverts that TIP keeps (docs/reference/datasets.md §4.2, steps 1 to 8).

    Args:
        tables: file name -> path.
        published: standardise the nine columns of the advert here, over all rows before any is left out.
        minimum: adverts that a model must have.

    Returns:
        One row per advert (codes, numbers, ``class``, ``folder`` and ``Image_name``); levels of the categorical
        columns; names of the classes (``Genmodel_ID``), in the order of their first advert.

    Raises:
        UserError: an absent column, or no row is left.
    """
    frame = _complete_adverts(tables)
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
    frame["folder"] = frame["Image_name"].str.split("$$", regex=False).str[:4].str.join("/")
    log.info("DVM: %d adverts of %d car models with at least %d", len(frame), len(models), minimum)
    return add_sizes(frame, tables["Ad_table (extra).csv"]), levels, models


def _complete_adverts(tables: dict[str, Path]) -> pd.DataFrame:
    """The adverts with an entry price, an image and a value in every column."""
    advert = read_csv(tables["Ad_table.csv"])
    if "Engin_size" in advert.columns:
        advert = advert.rename(columns={"Engin_size": "Engine_size"})
    columns = ["Genmodel_ID", "Adv_ID", *CATEGORICAL, *(c for c in ADVERT if c != "Entry_price")]
    check_columns(advert, columns, tables["Ad_table.csv"])
    price = read_csv(tables["Price_table.csv"])
    check_columns(price, ["Genmodel_ID", "Year", "Entry_price"], tables["Price_table.csv"])
    image = read_csv(tables["Image_table.csv"])
    check_columns(image, ["Image_ID", "Image_name"], tables["Image_table.csv"])

    image = image[["Image_ID", "Image_name"]].copy()
    image["Adv_ID"] = image["Image_ID"].str.split("$$", regex=False).str[:2].str.join("$$")
    image = image.drop_duplicates("Adv_ID")
    advert = advert[columns].copy()
    advert["Engine_size"] = advert["Engine_size"].str.replace(r"[^0-9.]+$", "", regex=True)
    # Years and prices that are no numbers ("Uknown") are missing, like empty cells.
    for name in columns:
        if name not in ("Genmodel_ID", "Adv_ID", *CATEGORICAL):
            advert[name] = pd.to_numeric(advert[name], errors="coerce")
    price = price[["Genmodel_ID", "Year", "Entry_price"]].apply(
        lambda c: c if c.name == "Genmodel_ID" else pd.to_numeric(c, errors="coerce")
    )
    price = price.drop_duplicates(["Genmodel_ID", "Year"])
    priced = advert.merge(price, left_on=["Genmodel_ID", "Reg_year"], right_on=["Genmodel_ID", "Year"])
    paired = priced.merge(image, on="Adv_ID")
    frame = paired.replace({name: {"": None} for name in CATEGORICAL})
    frame = frame.dropna(subset=[*CATEGORICAL, *ADVERT]).reset_index(drop=True)
    log.info(
        "DVM: %d adverts, %d with an entry price, %d of these with an image, %d without gaps",
        len(advert),
        len(priced),
        len(paired),
        len(frame),
    )
    if not len(frame):
        raise UserError(
            f"no advert of {tables['Ad_table.csv']} has an entry price, an image and all columns: the tables do not "
            "belong together, unpack tables_V2.0.zip again"
        )
    return frame


def add_sizes(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add the jittered physical sizes of the adverts.

    Gaps (0 or nothing) take the size of another advert of the same model.

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
    jitter = random.Random(JITTER_SEED)
    for name in JITTER_ORDER:
        frame[name] += [jitter.randint(-JITTER, JITTER) for _ in range(len(frame))]
    return frame
