"""Bad input of stage predict: each mistake gives one line with problem, place and fix, and leaves no output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datasets.batch import Modality
from tests.contracts.test_bundles import parts_config
from tests.makers import make_image_table
from tests.test_cli import execute
from trainers import run as pipeline
from trainers.bundle import MANIFEST, MODEL
from trainers.loading import Run
from trainers.predict import save_recoveries
from utils.checksums import digest


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``bundle``, ``bundle.zip``, ``photos`` and the complete table ``new.csv``."""
    folder = tmp_path_factory.mktemp("exported")
    csv = make_image_table(folder / "parts", per_class=16)
    options = ("model=ModDrop", "model.training.max_epochs=1", "missing.test=[none]")
    cfg = parts_config(folder, *options, "stages=[prepare,fit,test,export]")
    pipeline.run(cfg)
    target = tmp_path_factory.mktemp("colleague")
    shutil.copytree(Run(cfg).directory / "bundle", target / "bundle")
    shutil.copy(Run(cfg).directory / "bundle.zip", target / "bundle.zip")
    shutil.copytree(csv.parent / "photos", target / "photos")
    shutil.copy(csv, target / "new.csv")
    return target


class Case:
    """A copy of the exported folder, in which one thing is wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {
            "bundle": folder / "bundle",
            "input": folder / "new.csv",
            "images": folder / "photos",
            "output": folder / "out.csv",
        }

    def table(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        frame = pd.read_csv(self.folder / "new.csv", dtype=str, keep_default_na=False)
        change(frame).to_csv(self.folder / "new.csv", index=False)

    def text(self, change: Callable[[str], str]) -> None:
        file = self.folder / "new.csv"
        file.write_text(change(file.read_text()))

    def give(self, **settings: object) -> None:
        self.settings |= settings

    def manifest(self, **values: object) -> None:
        file = self.folder / "bundle" / MANIFEST
        content = json.loads(file.read_text()) | values
        content.pop("checksum")
        file.write_text(json.dumps(content | {"checksum": digest(content)}))

    def arrays(self, **arrays: np.ndarray) -> None:
        np.savez(self.folder / "new.npz", **arrays)
        self.give(input=self.folder / "new.npz")


def in_row(name: str, value: str, row: int = 2) -> Callable[[Case], None]:
    """A cell of the table, of the row that a spreadsheet shows as ``row + 2``."""

    def change(case: Case) -> None:
        def replaced(frame: pd.DataFrame) -> pd.DataFrame:
            frame.loc[row, name] = value
            return frame

        case.table(replaced)

    return change


def not_a_picture(case: Case) -> None:
    (case.folder / "photos" / "p2.jpg").write_text("no picture")


def changed_weights(case: Case) -> None:
    content = bytearray((case.folder / "bundle" / MODEL).read_bytes())
    content[-1] ^= 1
    (case.folder / "bundle" / MODEL).write_bytes(bytes(content))


def cut_archive(case: Case) -> None:
    (case.folder / "cut.zip").write_bytes((case.folder / "bundle.zip").read_bytes()[:2000])
    case.give(bundle=case.folder / "cut.zip")


def picture_as_folder(case: Case) -> None:
    (case.folder / "photos" / "p2.jpg").unlink()
    (case.folder / "photos" / "p2.jpg").mkdir()


def other_table_as_output(case: Case) -> None:
    (case.folder / "out.csv").write_text("patient,dose\n1,2\n")


IMAGES, TABLE = np.zeros((2, 3, 28, 28), dtype=np.uint8), np.zeros((2, 4), dtype=np.float32)
# Mistake -> how it is made, problem and place, fix.
MISTAKES: dict[str, tuple[Callable[[Case], object], str, str]] = {
    # ---- the file
    "no input": (lambda c: c.give(input="null"), "predict.input=null", "give the .csv or .npz file"),
    "input absent": (lambda c: c.give(input="nowhere.csv"), "predict.input=nowhere.csv", "correct the path"),
    "input is a folder": (lambda c: c.give(input=c.folder), "is a folder", "name a .csv or .npz file"),
    "spreadsheet": (
        lambda c: c.give(input=shutil.copy(c.folder / "new.csv", c.folder / "new.xlsx")),
        "new.xlsx",
        "must be a .csv or .npz file",
    ),
    "empty file": (lambda c: c.text(lambda t: ""), "new.csv is empty", "give a header and"),
    "header only": (lambda c: c.text(lambda t: t.split("\n")[0] + "\n"), "new.csv has a header and no rows", "add"),
    "truncated row": (
        lambda c: c.text(lambda t: t[: t.rindex(",", 0, len(t) - 12)]),
        "1 rows of 48 are shorter than the header (7 cells), the first in row 49",
        "complete them",
    ),
    "short rows": (
        lambda c: c.text(lambda t: t.replace("\np3,", "\np3\np3,").replace("\np5,", "\np5\np5,")),
        "2 rows of 50 are shorter than the header (7 cells), the first in row 5",
        "complete them",
    ),
    "too many cells": (
        lambda c: c.text(lambda t: t.replace("\np3,", "\np3,nut,x,y,z,1,2,3,4,5\np3,")),
        "1 rows of 49 are longer than the header (7 cells), the first in row 5",
        "put quotation marks around cells that hold the separator",
    ),
    "wrong separator": (
        lambda c: c.text(lambda t: t.replace(",", ";")),
        "has one column, 'photo;kind;metal;finish;weight;length;box'",
        "separated by ','",
    ),
    "repeated column": (
        lambda c: c.text(lambda t: t.replace("finish", "metal")),
        "new.csv has 1 column names more than once (the first is 'metal'",
        "give each column a name of its own",
    ),
    "not UTF-8": (
        lambda c: (c.folder / "new.csv").write_bytes("photo,metal\np1,Grünspan\n".encode("cp1252")),
        "new.csv cannot be read as CSV ('utf-8' codec can't decode byte 0xfc",
        "set dataset.encoding",
    ),
    "UTF-16": (
        lambda c: (c.folder / "new.csv").write_bytes("photo,metal\n".encode("utf-16")),
        "new.csv cannot be read as CSV",
        "set dataset.encoding",
    ),
    "binary file": (
        lambda c: (c.folder / "new.csv").write_bytes(b"\x89PNG\x00\x00,\x00\n\x00\x01\x00"),
        "new.csv",
        "set dataset.encoding",
    ),
    # ---- columns and cells
    "column misspelled": (
        lambda c: c.table(lambda f: f.rename(columns={"weight": "wieght"})),
        "there is no column 'weight' (did you mean 'wieght'?)",
        "add it, or set predict.unknown=missing",
    ),
    "column absent": (lambda c: c.table(lambda f: f.drop(columns="metal")), "there is no column 'metal'", "add it"),
    "no usable column": (
        lambda c: c.table(lambda f: f[["box"]]),
        "has none of the columns photo, metal, finish, weight, length",
        "give a table with them",
    ),
    "unseen level": (in_row("metal", "gold"), "levels brass, steel: 'gold'", "correct them"),
    "unit in numbers": (
        in_row("weight", "5 kg"),
        "in column 'weight' are no numbers, '5 kg'",
        "correct",
    ),
    "decimal comma": (
        in_row("length", "20,5"),
        "in column 'length' are no numbers, '20,5'",
        "correct",
    ),
    "infinite": (
        in_row("length", "inf"),
        "in column 'length' are no numbers, 'inf'",
        "correct them",
    ),
    "unknown class": (
        in_row("kind", "washer"),
        "1 labels in column 'kind' are none of the classes nut, bolt, screw: 'washer'",
        "correct them, or leave the column out",
    ),
    "id absent": (lambda c: c.give(id="number"), "there is no column 'number'", "correct dataset.id or predict.id"),
    "id repeated": (
        lambda c: c.give(id="box"),
        "identifiers in column 'box' stand in several rows (the first is nut0)",
        "give each row an identifier of its own",
    ),
    # ---- images
    "images absent": (lambda c: c.give(images="nowhere"), "predict.images=nowhere: there is no such folder", "correct"),
    "images is a file": (lambda c: c.give(images=c.folder / "new.csv"), "new.csv: is a file", "name a folder"),
    "no image there": (
        lambda c: c.table(lambda f: f.assign(photo=f["photo"] + "_x")),
        "no image is in",
        "set predict.images",
    ),
    "image leaves the folder": (
        in_row("photo", "../bundle/p2"),
        "1 names in column 'photo' lead out of",
        "move the files there, or set predict.images",
    ),
    "image with an absolute path": (in_row("photo", "/etc/p2"), "column 'photo' lead out of", "set predict.images"),
    "no picture": (not_a_picture, "1 images cannot be read: ", "replace them, or set predict.unknown=missing"),
    "picture is a folder": (picture_as_folder, "1 images cannot be read: ", "replace them"),
    # ---- bundle
    "bundle absent": (lambda c: c.give(bundle=c.folder / "no"), "there is no bundle", "give the folder or .zip file"),
    "no bundle": (
        lambda c: c.give(bundle=c.folder / "photos"),
        "photos is no bundle",
        "give the folder that stage export",
    ),
    "bundle of a newer version": (
        lambda c: c.manifest(format=99),
        "is a bundle of format 99, this version reads format 1",
        "update this program",
    ),
    "bundle damaged": (
        lambda c: (c.folder / "bundle" / MANIFEST).write_text("{"),
        "bundle.json is damaged",
        "take the bundle from where it was made again",
    ),
    "weights changed": (changed_weights, "is not the file that was exported", "take the bundle from where"),
    "archive cut off": (
        cut_archive,
        "cut.zip is no bundle",
        "give the folder or .zip file",
    ),
    # ---- output and options
    "output is the input": (lambda c: c.give(output=c.folder / "new.csv"), "is the input", "name another .csv file"),
    "output is a folder": (
        lambda c: (c.folder / "out.csv").mkdir(),
        "out.csv: is a folder",
        "name a .csv file",
    ),
    "output is no table": (lambda c: c.give(output=c.folder / "out.txt"), "out.txt", "must be the name of a .csv file"),
    "output is another table": (other_table_as_output, "out.csv: holds no predictions", "name another .csv file"),
    "output below a file": (
        lambda c: c.give(output=c.folder / "new.csv" / "out.csv"),
        "cannot be written",
        "correct the permissions",
    ),
    "recoveries are a file": (
        lambda c: c.give(recovered=c.folder / "new.csv"),
        "predict.recovered=",
        "name a folder",
    ),
    "recoveries of a method without": (
        lambda c: c.give(recovered=c.folder / "recovered"),
        "ModDrop recovers nothing",
        "leave predict.recovered out",
    ),
    "chunk": (lambda c: c.give(chunk=0), "predict.chunk=0", "must be a whole number of at least 1"),
    "chunk is text": (lambda c: c.give(chunk="many"), "predict.chunk=many", "must be a whole number"),
    "unknown": (lambda c: c.give(unknown="guess"), "predict.unknown=guess", "must be one of refuse, missing"),
    # ---- arrays
    "array of unknown name": (lambda c: c.arrays(picture=IMAGES), "an array 'picture'", "known are image, table"),
    "array of another shape": (
        lambda c: c.arrays(table=TABLE[:, :3]),
        "'table' has rows of shape (3,)",
        "the model takes (4,)",
    ),
    "arrays of other lengths": (
        lambda c: c.arrays(image=IMAGES, table=TABLE[:1]),
        "arrays of 2 rows (image), 1 rows (table)",
        "give as many of each",
    ),
    "infinite array": (
        lambda c: c.arrays(table=np.array([[0, 0, np.inf, 0]], dtype=np.float32)),
        "'table' has 1 values that are infinite, the first in row 1",
        "correct them, NaN means missing",
    ),
    "objects in arrays": (
        lambda c: c.arrays(table=np.array([{}], dtype=object)),
        "cannot be read as .npz",
        "numpy.savez",
    ),
}


@pytest.fixture
def case(exported: Path, tmp_path: Path) -> Case:
    return Case(Path(shutil.copytree(exported, tmp_path / "case")))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line_with_problem_and_fix(case: Case, mistake: str, tmp_path: Path) -> None:
    make, problem, fix = MISTAKES[mistake]
    make(case)
    before = {f: f.stat().st_mtime_ns for f in case.folder.rglob("*")}
    settings = [f"predict.{key}={value}" for key, value in case.settings.items()]
    code, lines = execute(["stages=[predict]", *settings], tmp_path / "cwd")
    errors = [line for line in lines if line.startswith("[E]")]
    assert code == 2 and len(errors) == 1, lines
    assert problem in errors[0] and fix in errors[0].partition(problem)[2]
    assert not any("Traceback" in line or "Error executing job" in line for line in lines)
    assert {f: f.stat().st_mtime_ns for f in case.folder.rglob("*")} == before, "nothing is written"


def test_there_are_enough_mistakes() -> None:
    assert len(MISTAKES) >= 30


def test_the_complete_table_is_predicted(case: Case, tmp_path: Path) -> None:
    settings = [f"predict.{key}={value}" for key, value in case.settings.items()]
    code, lines = execute(["stages=[predict]", *settings], tmp_path / "cwd")
    assert code == 0, lines
    assert len(pd.read_csv(case.folder / "out.csv")) == 48
    assert execute(["stages=[predict]", *settings], tmp_path / "cwd")[0] == 0, "own predictions are replaced"


def test_rows_of_one_name_in_two_folders_keep_their_recoveries(tmp_path: Path) -> None:
    """A black and a white picture."""
    rows: Any = SimpleNamespace(names=["a/x.jpg", "b/x.jpg"], observed=lambda modalities: np.zeros((2, 1), dtype=bool))
    rows.take = lambda chosen: rows
    content = np.repeat(np.array([0.0, 1.0], dtype=np.float32), 4).reshape(2, 1, 2, 2)
    data = SimpleNamespace(modalities=[Modality("image", "image", (1, 2, 2))], pixels=lambda name, x: x)
    predictor: Any = SimpleNamespace(
        data=data, answerable=lambda rows: np.ones(2, dtype=bool), recover=lambda rows: {"image": content}
    )
    assert save_recoveries(predictor, rows, tmp_path) == {}
    shown = {file.name: Image.open(file).getextrema() for file in (tmp_path / "image").iterdir()}
    assert shown == {"a_x.jpg.png": (0, 0), "b_x.jpg.png": (255, 255)}
