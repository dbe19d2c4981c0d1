"""DVM and UK Biobank: TIP's recipe against a slow reading of the same files, prepared layouts, stand-ins, refusals."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split

from datasets import dvm, ukbb
from datasets.coded_table import Coded
from datasets.demo.dvm import make_dvm
from datasets.demo.folders import ensure_demo
from datasets.demo.ukbb import make_ukbb
from datasets.dvm import DVM
from datasets.dvm_table import build_table
from datasets.missingness import parse_scenario
from datasets.missingness.table import table_mask
from datasets.readers.tip_files import read_list
from datasets.ukbb import UKBB
from tests.makers import calls_of
from trainers.config import build as build_module
from trainers.config.build import build_data
from trainers.config.compose import compose_config
from trainers.config.overrides import check_overrides
from utils.errors import UserError


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dvm")
    make_dvm(root)
    return root


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ukbb")
    make_ukbb(root, n=(400, 40, 60), side=24)
    return root


@pytest.fixture(scope="module")
def packed(raw: Path) -> DVM:
    data = DVM(store=str(raw.parent / "store"), root=str(raw), side=24, stored_side=32)
    data.prepare()
    return data


# ------------------------------------------------------------------------------------------------------- constants


def test_columns_are_those_of_the_files() -> None:
    """17 and 75 columns; 50 and 90 levels (docs/reference/datasets.md §14.6)."""
    assert len(dvm.COLUMNS) == len(set(dvm.COLUMNS)) == 17 and dvm.COLUMNS[:5] == (*dvm.CATEGORICAL, "Wheelbase")
    assert len(ukbb.COLUMNS) == len(set(ukbb.COLUMNS)) == 75 and len(ukbb.CATEGORICAL) == 26
    levels = [2] * 13 + [3, 6, 4, 3, 3, 8, 8, 8, 3, 8, 3, 4, 3]
    assert list(ukbb.CATEGORICAL.values()) == levels and sum(levels) == 90


def test_names_of_the_prepared_files() -> None:
    assert ukbb.file_names("CAD", "train", True) == (
        "cardiac_features_train_imputed_noOH_tabular_imaging_CAD_balanced_reordered.csv",
        "cardiac_labels_CAD_train_balanced.pt",
        "cardiac_train_paths_imaging_CAD_balanced.pt",
    )
    assert ukbb.file_names("Infarction", "test", True) == (
        "cardiac_features_test_imputed_noOH_tabular_imaging_reordered.csv",
        "cardiac_labels_Infarction_test.pt",
        "cardiac_test_paths_imaging.pt",
    )


# ---------------------------------------------------------------------------------------------------- DVM, raw tables


def slow_adverts(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The adverts that are kept, by loops over the files (docs/reference/datasets.md §4.2, steps 1 to 8), before
    standardising.
    """

    def rows(name: str) -> list[dict[str, str]]:
        with (root / "tables_V2.0" / name).open() as stream:
            return [{k.strip(): v.strip() for k, v in row.items()} for row in csv.DictReader(stream)]

    images: dict[str, str] = {}
    for row in rows("Image_table.csv"):
        images.setdefault("$$".join(row["Image_ID"].split("$$")[:2]), row["Image_name"])
    prices = {(row["Genmodel_ID"], int(row["Year"])): float(row["Entry_price"]) for row in rows("Price_table.csv")}
    remaining = []
    for row in rows("Ad_table.csv"):
        key = (row["Genmodel_ID"], int(row["Reg_year"]))
        if key in prices and row["Adv_ID"] in images and row["Price"] != "Uknown" and row["Gearbox"]:
            remaining.append({**row, "Entry_price": prices[key], "Image_name": images[row["Adv_ID"]]})
    for name in dvm.CATEGORICAL:
        levels = sorted({row[name] for row in remaining})
        for row in remaining:
            row[name] = levels.index(row[name])
    for row in remaining:
        row["Engine_size"] = float(row.pop("Engin_size").rstrip("L"))
    per_model: dict[str, int] = {}
    for row in remaining:
        per_model[row["Genmodel_ID"]] = per_model.get(row["Genmodel_ID"], 0) + 1
    remaining = [row for row in remaining if per_model[row["Genmodel_ID"]] >= 100]
    extra = {row["Adv_ID"]: row for row in rows("Ad_table (extra).csv")}
    for name in dvm.PHYSICAL:
        known: dict[str, float] = {}
        for row in remaining:
            if float(extra[row["Adv_ID"]][name]):
                known.setdefault(row["Genmodel_ID"], float(extra[row["Adv_ID"]][name]))
        for row in remaining:
            row[name] = float(extra[row["Adv_ID"]][name]) or known[row["Genmodel_ID"]]
    random.seed(2022)
    for name in ("Wheelbase", "Length", "Width", "Height"):
        for row in remaining:
            row[name] += random.randint(-50, 50)
    return remaining, list(dict.fromkeys(row["Genmodel_ID"] for row in remaining))


def test_the_table_is_the_one_that_loops_over_the_files_give(raw: Path, packed: DVM) -> None:
    remaining, models = slow_adverts(raw)
    assert packed.class_names == models and len(models) == 12
    table = packed.modalities[1]
    assert table.cardinalities == (22, 13, 3, 12) and table.columns == dvm.COLUMNS and table.shape == (17,)
    target = np.array([models.index(row["Genmodel_ID"]) for row in remaining])
    others, test = train_test_split(np.arange(len(remaining)), test_size=0.5, random_state=2022, stratify=target)
    train, val = train_test_split(others, test_size=0.2, random_state=2022, stratify=target[others])
    values = np.array([[float(row[c]) for c in dvm.COLUMNS] for row in remaining])
    mean, deviation = values[train].mean(0), values[train].std(0, ddof=1)
    for split, rows in (("train", train), ("val", val), ("test", test)):
        rows = np.sort(rows)
        part = packed.split(split)
        expected = values[rows].copy()
        expected[:, 4:] = ((values[rows] - mean) / deviation)[:, 4:]
        np.testing.assert_allclose(part.read("tabular").numpy(), expected, atol=2e-5, rtol=1e-5)
        assert part.read("target").tolist() == target[rows].tolist()
        assert part.names() == [remaining[i]["Image_name"] for i in rows]
    row = remaining[int(np.sort(test)[3])]
    maker, model, year, colour = row["Image_name"].split("$$")[:4]
    with Image.open(raw / "resized_DVM" / maker / model / year / colour / row["Image_name"]) as image:
        wanted = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(packed.split("test").read("img")[3].numpy(), wanted)


def test_published_standardisation_takes_all_rows_and_each_split(raw: Path, tmp_path: Path) -> None:
    data = DVM(store=str(tmp_path / "s"), root=str(raw), side=8, standardise="published")
    data.prepare()
    for split in ("train", "val", "test"):
        cells = data.split(split).read("tabular").numpy().astype(np.float64)
        np.testing.assert_allclose(cells[:, 4:8].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(cells[:, 4:8].std(0, ddof=1), 1, atol=1e-5)
    # The nine columns of the advert: over all rows without gaps, rare models too.
    everything = build_table({n: raw / "tables_V2.0" / n for n in dvm.TABLES}, published=True, minimum=1)[0]
    for name in dvm.ADVERT:
        assert everything[name].mean() == pytest.approx(0, abs=1e-9)
        assert everything[name].std(ddof=1) == pytest.approx(1)
    remaining = np.concatenate([data.split(s).read("tabular").numpy() for s in ("train", "val", "test")])
    common = everything[everything["Genmodel_ID"].isin(data.class_names)]
    np.testing.assert_allclose(remaining[:, 8:].mean(0), common[list(dvm.ADVERT)].mean(), atol=1e-4)


def test_sizes_that_are_wrong_or_absent_in_the_tables_are_mended(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "tables_V2.0", tmp_path / "t")
    tables = {name: tmp_path / "t" / name for name in dvm.TABLES}
    for path in tables.values():  # the third model becomes one whose height is known to be wrong
        path.write_text(path.read_text().replace("12_3", "29_30"))
    frame, _, models = build_table(tables)
    heights = frame.loc[frame["Genmodel_ID"] == "29_30", "Height"]
    assert "29_30" in models and ((heights - 1805).abs() <= 50).all() and heights.nunique() > 20
    extra = pd.read_csv(tables["Ad_table (extra).csv"])
    extra.loc[extra["Genmodel_ID"] == "10_1", " Width"] = 0
    extra.to_csv(tables["Ad_table (extra).csv"], index=False)
    with pytest.raises(UserError, match=r"1 car models have no Width \(10_1; \d+ adverts\)"):
        build_table(tables)


def test_bad_raw_tables_are_named(raw: Path, tmp_path: Path) -> None:
    root = tmp_path / "DVM"
    shutil.copytree(raw / "tables_V2.0", root / "tables_V2.0")

    def message() -> str:
        with pytest.raises(UserError) as error:
            DVM(store=str(tmp_path / "s"), root=str(root)).prepare()
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "without their image file: 504 of 504 in train, 126 of 126 in val, 630 of 630 in test" in message()
    file = root / "tables_V2.0" / "Ad_table.csv"
    file.write_text(file.read_text().replace("Gearbox", "Gear", 1))
    assert "lacks 1 of 14 columns: Gearbox" in message()
    (root / "tables_V2.0" / "Price_table.csv").unlink()
    assert "lacks Price_table.csv" in message()
    shutil.rmtree(root)
    assert "no DVM in" in message() and "dataset.demo=true" in message()


# ------------------------------------------------------------------------------------------------- prepared layouts


@pytest.fixture
def prepared(tmp_path: Path, packed: DVM) -> Path:
    """The packed adverts as TIP writes them, the images as .npy beside the .jpg names of another machine."""
    features = tmp_path / "DVM" / "features"
    features.mkdir(parents=True)
    torch.save([22, 13, 3, 12, *[1] * 13], features / dvm.PREPARED_LENGTHS)
    for split in ("train", "val", "test"):
        part = packed.split(split)
        pd.DataFrame(part.read("tabular").numpy()).to_csv(
            features / dvm.PREPARED_TABLE.format(split=split), header=False, index=False
        )
        # NumPy numbers, as a list made from a data frame holds them.
        torch.save(list(part.read("target").numpy()), features / dvm.PREPARED_LABELS.format(split=split))
        paths = []
        for i, (name, image) in enumerate(zip(part.names(), part.read("img").numpy())):
            place = Path("resized_DVM") / split / f"{i}"
            (tmp_path / "DVM" / place).mkdir(parents=True)
            np.save(tmp_path / "DVM" / place / Path(name).with_suffix(".npy"), image.transpose(1, 2, 0))
            paths.append(f"/elsewhere/{place}/{name}")
        torch.save(paths, features / dvm.PREPARED_PATHS.format(split=split))
    return tmp_path / "DVM"


def test_prepared_files_give_the_same_store(prepared: Path, packed: DVM, tmp_path: Path) -> None:
    data = DVM(store=str(tmp_path / "s"), root=str(prepared), num_classes=12, side=24, stored_side=32)
    data.prepare()
    assert data.modalities == packed.modalities and data.num_classes == 12
    for split in ("train", "val", "test"):
        for name in ("img", "tabular", "target"):
            ours, theirs = data.split(split).read(name), packed.split(split).read(name)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_bad_prepared_files_are_named_with_counts(prepared: Path, tmp_path: Path) -> None:
    features = prepared / "features"

    def message(num_classes: int = 12) -> str:
        with pytest.raises(UserError) as error:
            DVM(store=str(tmp_path / "s"), root=str(prepared), num_classes=num_classes, side=8).prepare()
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "labels are outside 0 to 9" in message(num_classes=10)
    lengths = features / dvm.PREPARED_LENGTHS
    torch.save([22, 13, 3, *[1] * 13], lengths)
    assert "has 16 cardinalities, the table has 17 columns" in message()
    torch.save([1, 22, 13, 3, 12, *[1] * 12], lengths)
    assert "a categorical column follows a continuous one" in message()
    torch.save([22, 3, 13, 12, *[1] * 13], lengths)
    assert "column 'Bodytype'" in message() and "values are no code from 0 to 2" in message()
    torch.save({"a": 1}, lengths)
    assert "holds no list" in message()
    torch.save([22, 13, 3, 12, *[1] * 13], lengths)
    labels = features / dvm.PREPARED_LABELS.format(split="val")
    torch.save(read_list(labels)[:-2], labels)
    assert "split 'val': 126 table rows, 124 labels and 126 images do not pair" in message()
    labels.write_bytes(b"PK\x03\x04")
    assert f"{labels} cannot be read" in message()
    labels.unlink()
    assert f"there is no {labels}" in message()
    table = features / dvm.PREPARED_TABLE.format(split="train")
    content = table.read_text()
    table.write_text("a" + content[1:])
    assert "holds a cell that is no number" in message()
    table.write_text("\n".join(line + ",1" for line in content.splitlines()))
    assert "has 18 columns, expected 17" in message()
    table.write_text(content.replace(content.split(",", 8)[7], "", 1))
    torch.save([0] * 126, labels)
    assert "1 cells of the table are no finite number" in message()


# -------------------------------------------------------------------------------------------------------- UK Biobank


def test_cad_and_infarction_share_tables_and_differ_in_labels(heart: Path, tmp_path: Path) -> None:
    pair = [UKBB(store=str(tmp_path / t), root=str(heart), target=t, side=20, stored_side=24) for t in ukbb.TARGETS]
    for data in pair:
        data.prepare()
        counts = data.store.meta()["class_counts"]["train"]  # type: ignore[index]
        assert len(set(counts.values())) == 1, "as many negatives as positives"
        assert data.task == "binary" and data.num_classes == 2
        table = data.modalities[1]
        assert table.shape == (75,) and table.cardinalities == tuple(ukbb.CATEGORICAL.values())
        stored = np.load(heart / "subjects" / data.split("test").names()[0].split("/")[0] / "sa_es_ed_mm.npy")
        assert stored.dtype == np.float32
        image = data.split("test").read("img")[0].numpy()
        np.testing.assert_allclose(image / 255, stored.transpose(2, 0, 1), atol=0.5 / 255 + 1e-6)
    cad, infarction = (d.split("test") for d in pair)
    assert torch.equal(cad.read("tabular"), infarction.read("tabular"))
    assert not torch.equal(cad.read("target"), infarction.read("target"))
    # The masks that lie beside the tables are those that the scenario makes.
    file = heart / "missing_mask" / "cardiac_features_test_imputed_noOH_tabular_imaging_reordered_CAD_value_0.3.npy"
    read, made = (pair[0].masks("test", parse_scenario(s))[1]["tabular"] for s in (f"file:{file}", "table_value_0.3"))
    assert np.array_equal(read, made) and np.array_equal(made, table_mask(60, 75, "value", 0.3, 2023))


def test_without_balanced_files_the_training_rows_are_drawn(heart: Path, tmp_path: Path) -> None:
    root = tmp_path / "UKBB"
    shutil.copytree(heart, root)
    rows = pd.concat([pd.read_csv(root / ukbb.file_names("CAD", s, False)[0], header=None) for s in ("val", "test")])
    paths = [p for s in ("val", "test") for p in read_list(root / ukbb.file_names("CAD", s, False)[2])]
    labels = [int(i % 9 == 4) for i in range(100)]
    for name in ukbb.file_names("CAD", "train", True):
        (root / name).unlink()
    table, label_file, path_file = ukbb.file_names("CAD", "train", False)
    rows.to_csv(root / table, header=False, index=False)
    torch.save(labels, root / label_file)
    torch.save(paths, root / path_file)
    data = UKBB(store=str(tmp_path / "s"), root=str(root), target="CAD", side=8)
    data.prepare()
    negatives = random.Random(2022).sample([i for i in range(100) if not labels[i]], sum(labels))
    chosen = sorted([*negatives, *(i for i in range(100) if labels[i])])
    assert data.split("train").read("target").tolist() == [labels[i] for i in chosen]
    assert data.split("train").names() == [paths[i].split("subjects/")[1] for i in chosen]
    full = UKBB(store=str(tmp_path / "f"), root=str(root), target="CAD", side=8, balanced=False)
    full.prepare()
    assert len(full.split("train")) == 100
    few = Coded(np.zeros((3, 1)), np.array([1, 1, 0]), [Path()] * 3, np.array(["a"] * 3))
    with pytest.raises(UserError, match=r"2 positive and 1 negative training rows"):
        ukbb.balance(few)
    few.target = np.array([0, 2, 3])
    with pytest.raises(UserError, match=r"2 of 3 training labels are not 0 or 1"):
        ukbb.balance(few)


def test_bad_arguments_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.target=Stroke: must be one of CAD, Infarction"):
        UKBB(store="s", root="r", target="Stroke")
    with pytest.raises(UserError, match=r"dataset.standardise=all"):
        DVM(store="s", root="r", standardise="all")
    with pytest.raises(UserError, match=r"no UK Biobank files in .*dataset.demo=true"):
        UKBB(store=str(tmp_path / "s"), root=str(tmp_path / "none"), target="CAD").prepare()


# ----------------------------------------------------------------------------------------------------------- stand-ins


def digest(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


DEMO_DATA: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "dvm": (make_dvm, {"n": 2}),
    "ukbb": (make_ukbb, {"n": [60, 5, 5], "side": 8}),
}


@pytest.mark.parametrize("kind", DEMO_DATA)
def test_demo_data_depend_on_their_seed_alone(kind: str, tmp_path: Path) -> None:
    make, size = DEMO_DATA[kind]
    first = ensure_demo(tmp_path / "a", make, seed=0, **size)
    stamp = (first / "demo.json").stat().st_mtime_ns
    assert ensure_demo(tmp_path / "a", make, seed=0, **size) == first
    assert (first / "demo.json").stat().st_mtime_ns == stamp, "made once"
    again = digest(ensure_demo(tmp_path / "b", make, seed=0, **size))
    other = digest(ensure_demo(tmp_path / "c", make, seed=1, **size))
    assert digest(first) == again
    images = [[f for path, f in files.items() if path.endswith((".jpg", "_mm.npy"))] for files in (again, other)]
    assert len(images[0]) > 10 and not set(images[0]) & set(images[1])
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_demo_data_replace_nothing_but_demo_data(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "precious.csv").write_text("1")
    with pytest.raises(UserError, match=r"mine holds no demo data made by dataset\.demo=true: move it away"):
        ensure_demo(root, make_dvm, n=2)
    assert (root / "precious.csv").read_text() == "1" and [p.name for p in tmp_path.iterdir()] == ["mine"]
    ensure_demo(tmp_path / "made", make_dvm, n=2)
    again = ensure_demo(tmp_path / "made", make_dvm, n=1)
    assert '"n": 1' in (again / "demo.json").read_text()
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "meta.json").write_text('{\n  "dataset": "DVM stand-in",\n  "version": 1\n}\n')
    assert (ensure_demo(tmp_path / "older", make_dvm, n=1) / "demo.json").is_file(), "of an earlier version"


@pytest.mark.parametrize("name", ["DVM", "CAD", "Infarction"])
def test_the_demo_is_made_beside_the_root_and_read_by_the_real_reader(
    composed, tmp_path: Path, raw: Path, heart: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = raw if name == "DVM" else heart
    folder = tmp_path / ("DVM-demo" if name == "DVM" else "UKBB-demo")
    asked: list[Any] = []

    def linked(path: Path, make: Callable[..., None]) -> None:
        asked.append((path, make))
        path.symlink_to(source)

    monkeypatch.setattr(build_module, "ensure_demo", linked)
    places = [f"paths.data={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    cfg = composed(f"dataset={name}", "dataset.demo=true", *places, tiny=False)
    build_module.make_demo_data(cfg)
    assert asked == [(folder, make_dvm if name == "DVM" else make_ukbb)]
    data = build_data(cfg)
    data.prepare()
    batch = next(iter(data.loader("train", parse_scenario("none"), train=True, batch_size=16)))
    n = 17 if name == "DVM" else 75
    assert batch.inputs["img"].shape == (16, 3, 128, 128) and batch.inputs["tabular"].shape == (16, n)
    assert float(batch.inputs["img"].min()) >= 0 and float(batch.inputs["img"].max()) <= 1 + 1e-6
    assert not batch.missing.any() and batch.complete
    codes = batch.inputs["tabular"][:, : len(data.modalities[1].cardinalities)]
    assert torch.equal(codes, codes.round()), "corrupted cells hold codes too"


# --------------------------------------------------------------------------------------------------------- job scripts


@pytest.mark.parametrize("name", ["DVM", "CAD", "Infarction"])
@pytest.mark.parametrize("place", ["demo", "folder"])
def test_a_job_script_runs_the_scenarios_of_the_original(name: str, place: str, tmp_path: Path) -> None:
    """With a stand-in for ``python``, which writes down its arguments: whole table, and 10 to 90 % of its cells."""
    (tmp_path / "folder").mkdir()
    ((program, *overrides),) = calls_of(tmp_path, f"{name}_DyMo.sh", place, "seed=3")
    assert program == "run.py" and overrides[-1] == "seed=3"
    check_overrides(overrides)
    cfg = compose_config(*overrides)
    assert (cfg.dataset.name, cfg.model.name, cfg.imputer.name) == (name, "DyMo", "TIP")
    assert list(cfg.missing.test) == ["none", "whole_1", *(f"table_value_{r}" for r in (0.1, 0.3, 0.5, 0.7, 0.9))]
    assert cfg.dataset.demo == (place == "demo")
    assert place == "demo" or cfg.dataset.root == str(tmp_path / "folder")
    backbone = cfg.model.backbone
    assert (backbone.module.width, backbone.module.heads, backbone.module.projection) == (256, 8, 128)
    assert backbone.module.subsets_per_step == 2 and backbone.module.optimizer.lr == 3e-4
    assert backbone.training.batch_size == (256 if name == "DVM" else 128) and backbone.training.max_epochs == 300
    assert cfg.model.selection.calibration == ("auto" if name == "DVM" else "ratio")
    assert cfg.dataset.monitor == ("val_accuracy" if name == "DVM" else "val_auroc")
