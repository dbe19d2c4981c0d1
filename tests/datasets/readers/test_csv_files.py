"""Separator, decimal sign and encoding of a user's CSV file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datasets.image_table import ImageTable
from datasets.readers.csv_files import Dialect, read_csv
from tests.makers import make_image_table
from trainers.config.compose import compose_config
from utils.errors import UserError

DIALECTS = [(";", ",", "cp1252"), ("tab", ",", "utf-16"), ("|", ".", "utf-8"), (";", ".", "utf-8-sig")]


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    file = make_image_table(tmp_path / "parts")
    file.write_text(file.read_text().replace("plain", "geglüht"))
    return file


@pytest.fixture
def make(tmp_path: Path, csv: Path) -> Callable[..., ImageTable]:
    def build(file: Path = csv, **changes: Any) -> ImageTable:
        arguments: dict[str, Any] = {
            "store": str(tmp_path / f"store of {file.stem}"),
            "name": "Parts",
            "csv": str(file),
            "images": str(csv.parent / "photos"),
            "image": "photo",
            "image_suffix": ".jpg",
            "label": "kind",
            "classes": ["nut", "bolt", "screw"],
            "categorical": {"metal": ["brass", "steel"], "finish": None},
            "continuous": ["weight", "length"],
            "missing_values": ["unknown"],
            "side": 16,
        }
        return ImageTable(**{**arguments, **changes})

    return build


@pytest.mark.parametrize(("separator", "decimal", "encoding"), DIALECTS)
def test_every_dialect_packs_the_same_arrays(
    make: Callable[..., ImageTable], csv: Path, separator: str, decimal: str, encoding: str
) -> None:
    usual = make()
    usual.prepare()
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    for name in ("weight", "length"):
        frame[name] = frame[name].str.replace(".", decimal)
    exported = csv.with_name("exported.csv")
    frame.to_csv(exported, index=False, sep="\t" if separator == "tab" else separator, encoding=encoding)
    data = make(exported, separator=separator, decimal=decimal, encoding=encoding)
    data.prepare()
    for split in ("train", "val", "test"):
        for name in ("table", "image", "target", *(["table_missing"] if split == "train" else [])):
            assert np.array_equal(data.split(split).read(name), usual.split(split).read(name))
    assert data.store.meta()["source"]["levels"]["finish"] == ["black", "geglüht", "zinc"]  # type: ignore[index]


def test_stores_of_the_default_dialect_stay_valid(make: Callable[..., ImageTable]) -> None:
    assert "dialect" not in make().row_settings()
    explicit = make(separator=",", decimal=".", encoding="utf-8-sig")
    assert explicit.row_settings() == make().row_settings()
    assert make(separator=";").row_settings()["dialect"]["separator"] == ";"
    for preset in ("ImageTable", "ImageText"):
        options = compose_config(f"dataset={preset}").dataset
        assert [options[key] for key in ("separator", "decimal", "encoding")] == [None] * 3


def test_a_decimal_comma_excludes_points() -> None:
    cells = pd.Series(["1,5", "-2", "1.234", "1.234,5", "", "3,1,4", "1e3"])
    numbers = Dialect(decimal=",").numbers(cells)
    np.testing.assert_array_equal(numbers, [1.5, -2, np.nan, np.nan, np.nan, np.nan, 1000])
    with_point = Dialect().numbers(cells)
    np.testing.assert_array_equal(with_point, [np.nan, -2, 1.234, np.nan, np.nan, np.nan, 1000])


def test_the_wrong_dialect_is_named(make: Callable[..., ImageTable], csv: Path) -> None:
    exported = csv.with_name("exported.csv")
    exported.write_text(csv.read_text().replace(",", ";"), encoding="utf-8")
    with pytest.raises(UserError, match=r"it has the one column 'photo;kind;.*': set dataset\.separator=';'"):
        make(exported).prepare()
    exported.write_text(csv.read_text(), encoding="cp1252")
    with pytest.raises(UserError, match=r"cannot be read as CSV .*: set dataset\.encoding, for example to cp1252"):
        read_csv(exported)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("separator", ";;", "must be one character"),
        ("separator", ".", "must be one character"),
        ("decimal", ";", "must be '.' or ','"),
        ("encoding", "utf-9", "Python knows no such encoding"),
    ],
)
def test_impossible_options_are_refused(make: Callable[..., ImageTable], option: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**{option: value})
