"""MIMIC: the published tables, linking the downloads, labels, folds, refusals, and a whole grid of runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold, MultilabelStratifiedShuffleSplit
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from datasets.demo.mimic import make_mimic
from datasets.mimic import CLINICAL, FOLDERS, IMAGES, MIMIC, NUMBERS
from datasets.mimic_linkage import FINDINGS, RAW, VITALS, link
from tests.conftest import Reads
from tests.makers import make_chest_xray
from trainers import run as pipeline
from trainers.config.build import build_data
from trainers.config.compose import CONFIGS, compose_config
from trainers.loading import Run
from trainers.report import plots
from trainers.report.runs import gather, modality_names
from trainers.report.style import model_styles
from utils.errors import UserError

N = 120


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mimic")
    make_mimic(root, n=N, side=16)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A copy whose tables may be changed; the films are links."""
    for name in (CLINICAL, IMAGES):
        place = tmp_path / "MIMIC" / FOLDERS[name]
        place.mkdir(parents=True)
        (place / name).write_bytes((original / FOLDERS[name] / name).read_bytes())
    for folder in (original / FOLDERS[IMAGES]).glob("p*"):
        (tmp_path / "MIMIC" / FOLDERS[IMAGES] / folder.name).symlink_to(folder)
    return tmp_path / "MIMIC"


@pytest.fixture
def make(root: Path, tmp_path: Path) -> Callable[..., MIMIC]:
    def build(**changes: Any) -> MIMIC:
        fold = changes.get("fold", 0)
        arguments = {"root": str(root), "store": str(tmp_path / "cache" / f"fold{fold}"), "side": 16, "fold": fold}
        arguments |= {"scaling": "min_max", "unseen": "missing", **changes}
        return MIMIC(**arguments)

    return build


def change(root: Path, name: str, edit: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Edit one of the two tables, all cells as text."""
    path = root / FOLDERS[name] / name
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    changed = edit(frame)
    (frame if changed is None else changed).to_csv(path, index=False)


def read(root: Path, name: str = CLINICAL) -> pd.DataFrame:
    return pd.read_csv(root / FOLDERS[name] / name, dtype=str, keep_default_na=False)


def test_the_scale_makes_z_scores_of_what_is_between_0_and_1(make: Callable[..., MIMIC]) -> None:
    data = make()
    data.prepare()
    _, table = data.modalities
    first = len(table.cardinalities)
    numbers = data.split("train").read("table").double().numpy()[:, first:]
    gaps = data.natural_cells("train")["table"][:, first:]
    z = numbers * np.array(table.scale.deviation) + np.array(table.scale.mean)
    for column in range(numbers.shape[1]):
        known = z[~gaps[:, column], column]
        assert abs(known.mean()) < 1e-6 and (known.std() == pytest.approx(1) or np.ptp(known) == 0)


# ---------------------------------------------------------------------------------------------------- published tables


def test_rows_are_coded_as_a_loop_over_the_tables_codes_them(make: Callable[..., MIMIC], root: Path) -> None:
    data = make()
    data.prepare()
    frame, files = read(root), read(root, IMAGES).set_index("ID")
    assert data.task == "multilabel" and data.class_names == list(FINDINGS)
    image, table = data.modalities
    categories = ["gender", "race", *(c for c in frame if c.startswith("DRG "))]
    assert image.shape == (3, 16, 16) and table.columns == (*categories, *NUMBERS)
    assert table.cardinalities == (2, 4, *[2] * 6)
    place = frame.set_index(frame["ID"].map(lambda i: f"{files['folder'][i]}/{files['img'][i]}"))
    train = place.loc[data.split("train").names()]
    seen = 0
    for split in ("train", "val", "test"):
        packed = data.split(split)
        cells, target, images = (packed.read(key).numpy() for key in ("table", "target", "image"))
        gaps = data.natural_cells(split)["table"]
        for i, name in enumerate(packed.names()):
            row = place.loc[name]
            for c, finding in enumerate(FINDINGS):
                assert target[i, c] == {"1.0": 1, "0.0": 0, "-1.0": -1, "": -1}[row[finding]]
            for j, column in enumerate(categories):
                assert cells[i, j] == sorted(set(train[column])).index(row[column])
            for j, column in enumerate(NUMBERS, len(categories)):
                numbers = [float(v) for v in train[column] if v]
                assert gaps[i, j] == (row[column] == "")
                value = float(row[column]) if row[column] else np.mean(numbers)
                expected = (value - min(numbers)) / (max(numbers) - min(numbers))
                assert cells[i, j] == pytest.approx(expected, abs=1e-5)
            with Image.open(root / FOLDERS[IMAGES] / name) as film:
                assert np.array_equal(images[i], np.stack([np.asarray(film.convert("L"))] * 3))
            seen += 1
    assert seen == N
    outside = data.split("test").read("table").numpy()[:, len(categories) :]
    assert outside.min() < 0 or outside.max() > 1, "values outside the range of training are not clipped"


def test_folds_are_the_library_s_and_test_every_row_once(make: Callable[..., MIMIC], root: Path, reads: Reads) -> None:
    frame = read(root)
    positive = (frame[list(FINDINGS)] == "1.0").to_numpy(int)
    stems = frame["ID"].to_numpy()
    tested: list[str] = []
    folds = MultilabelStratifiedKFold(5, shuffle=True, random_state=42).split(positive, positive)
    inodes = set()
    for fold, (others, test) in enumerate(folds):
        data = make(fold=fold)
        data.prepare()
        assert len(reads.all()) == (N if fold == 0 else 0), "films are decoded for the first fold alone"
        parts = {split: [Path(n).stem for n in data.split(split).names()] for split in ("train", "val", "test")}
        assert parts["test"] == stems[test].tolist()
        inner = MultilabelStratifiedShuffleSplit(1, test_size=0.2, random_state=42)
        train, val = next(inner.split(positive[others], positive[others]))
        assert parts["train"] == stems[np.sort(others[train])].tolist()
        assert parts["val"] == stems[np.sort(others[val])].tolist()
        tested += parts["test"]
        inodes |= {(data.store.folder / split / "image.npy").stat().st_ino for split in parts}
        packed = data.split("val")
        items, rows = packed.pool("image", in_memory=True)
        assert len(items) == len(packed), "what other splits show stays on disk"
        assert rows is not None and (items[rows] == packed.memory_map("image")).all()
    assert sorted(tested) == sorted(stems) and len(inodes) == 1, "all folds show one file"


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("edit", "options", "line"),
    [
        (lambda f: f.assign(ID=f["ID"].where(f.index != 3, f["ID"][4])), {}, r"1 IDs stand twice \(the first is 5000"),
        (lambda f: f.drop(columns="o2sat"), {}, "lacks 1 of 22 columns: o2sat"),
        (lambda f: f.assign(Edema=f["Edema"].where(f.index != 2, "2")), {}, "1 of 120 rows have other labels than in"),
        (lambda f: f.assign(sbp=f["sbp"].where(f.index != 5, "high")), {}, r"1 cells in column 'sbp' are no numbers"),
        (lambda f: f.assign(Fracture=f["Fracture"].replace("1.0", "")), {}, "have other labels"),
        (lambda f: f.assign(**{" sbp": f["sbp"]}), {}, r"1 column names more than once \(the first is 'sbp'"),
        (lambda f: f.iloc[:0, :0], {}, "cannot be read as CSV"),
        (lambda f: f.assign(note=f["ID"]), {}, r"'note' has \d+ values in \d+ training rows: it names rows"),
        (
            lambda f: f.assign(dbp=""),
            {"fold": 2},
            r"'dbp' has no value in the \d+ rows of the training split of fold 2",
        ),
        (
            lambda f: f.assign(subject_id=(f.index // 2).astype(str).where(f.index > 4, "")),
            {},
            r"5 rows have nothing in column 'subject_id'.* \(the first in row 1\)",
        ),
    ],
)
def test_bad_tables_are_refused_in_one_line(
    make: Callable[..., MIMIC], root: Path, edit: Any, options: dict[str, Any], line: str
) -> None:
    change(root, CLINICAL, edit)
    with pytest.raises(UserError, match=line) as error:
        make(**options).prepare()
    assert "\n" not in str(error.value)


def test_columns_are_found_whatever_stands_around_their_names(make: Callable[..., MIMIC], root: Path) -> None:
    plain = make()
    plain.prepare()
    columns = plain.modalities[1].columns
    change(root, CLINICAL, lambda f: f.rename(columns={c: f" {c} " for c in f.columns if c != "ID"}))
    spaced = make(store=str(root / "spaced"))
    spaced.prepare()
    assert spaced.modalities[1].columns == columns and "race" in columns


def test_unknown_labels_are_alike_and_a_folder_is_no_image(
    make: Callable[..., MIMIC], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """-1 in one table and nothing in the other; the first three images have a folder and no file name."""
    change(root, CLINICAL, lambda f: f.assign(Edema=f["Edema"].replace("-1.0", "")))
    change(root, IMAGES, lambda f: f.assign(Edema=f["Edema"].replace("", "-1"), img=f["img"].where(f.index > 2, "")))
    with pytest.raises(UserError, match="3 rows without an image name"):
        make().prepare()
    data = make(without_image="missing")
    data.prepare()
    assert sum(rows["image"].sum() for s in ("train", "val", "test") if (rows := data.natural_rows(s))) == 3
    assert "120 rows have no image (3 without a name)" in caplog.text
    assert "has no column subject_id: films of one patient may be in several splits" in caplog.text
    caplog.clear()
    change(root, CLINICAL, lambda f: f.assign(subject_id=f.index // 2))
    make(without_image="missing", store=str(root / "grouped")).prepare()
    assert "has no column subject_id" not in caplog.text


def test_what_can_be_used_is_used_and_the_rest_is_counted(
    make: Callable[..., MIMIC], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def clinical(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[[7, 8], list(FINDINGS)] = ""
        frame["dbp"] = "70"
        return frame.iloc[1:]  # an image without a row

    def films(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[[7, 8], list(FINDINGS)] = "-1"
        return frame.drop(index=[10, 11, 12])  # rows without an image

    change(root, CLINICAL, clinical)
    change(root, IMAGES, films)
    change(
        root,
        CLINICAL,
        lambda f: f.assign(**{x: f[x].where(~f["ID"].isin(["50000007", "50000008"]), "") for x in FINDINGS}),
    )
    change(
        root,
        IMAGES,
        lambda f: f.assign(**{x: f[x].where(~f["ID"].isin(["50000007", "50000008"]), "") for x in FINDINGS}),
    )
    with pytest.raises(
        UserError, match=r"3 rows without an image name in column 'image' .*or set dataset.without_image"
    ):
        make().prepare()
    caplog.clear()
    data = make(without_image="missing")
    data.prepare()
    text = caplog.text
    assert "1 of 117 images have no row in MIMIC_clinical_data.csv and are left out" in text
    assert "3 of 119 rows have no image (3 without a name), used without it" in text
    assert "2 of 119 rows left out: none of their labels is known" in text
    assert "1 of 15 columns of the table are constant in training (dbp)" in text
    counts = data.store.meta()["counts"]  # type: ignore[index]
    assert sum(counts.values()) == 117
    absent = sum(int(data.natural_rows(s).get("image", np.zeros(1)).sum()) for s in counts)
    assert absent == 3
    for split in counts:
        rows = data.natural_rows(split).get("image")
        if rows is not None:  # missing under every scenario, and counted by a nested one
            from datasets.missingness import parse_scenario

            assert (data.mask(split, parse_scenario("none"))[:, 0] == rows).all()
            mask = data.mask(split, parse_scenario("nested_0_0.25"))
            assert mask[:, 0].sum() == max(len(rows) // 4, rows.sum()) and mask[rows, 0].all()
    left = make(without_image="leave_out")
    left.prepare()
    assert sum(left.store.meta()["counts"].values()) == 114  # type: ignore[index]


def test_a_label_that_training_does_not_have_is_refused(
    make: Callable[..., MIMIC], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (CLINICAL, IMAGES):
        change(root, name, lambda f: f.assign(**{"Lung Lesion": f["Lung Lesion"].replace("1.0", "0.0")}))
    with pytest.raises(UserError, match=r"no positive row of 1 of 14 labels in split 'train' \(Lung Lesion\)"):
        make().prepare()
    for name in (CLINICAL, IMAGES):
        change(root, name, lambda f: f.assign(**{"Lung Lesion": f["Lung Lesion"].where(f.index != 0, "1.0")}))
    refused = 0
    for fold in range(5):
        try:
            make(fold=fold).prepare()
        except UserError:
            refused += 1
    assert refused <= 2, "the one positive row is tested in one fold, and validates in at most one other"
    assert "no positive row of 1 of 14 labels in split 'test' (Lung Lesion): they have no score there" in caplog.text


def test_a_category_that_training_does_not_have_counts_as_missing(
    make: Callable[..., MIMIC], root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make()
    data.prepare()
    name = Path(data.split("test").names()[0]).stem
    change(root, CLINICAL, lambda f: f.assign(race=f["race"].where(f["ID"] != name, "UNKNOWN")))
    with pytest.raises(UserError, match=r"1 values in column 'race' are none of the 4 that the training split has"):
        make(unseen="refuse").prepare()
    data = make()
    data.prepare()
    assert (
        "1 values in column 'race' are none of the 4 that training has, they count as missing: 'UNKNOWN' (1)"
        in caplog.text
    )
    assert data.natural_cells("test")["table"][0, 1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"fold": 5}, "dataset.fold=5: there are 5 folds, counted from 0"),
        ({"fold_validation": 1}, "dataset.fold_validation=1: must be a share"),
        ({"without_image": "drop"}, "must be one of refuse, leave_out, missing"),
        ({"studies": "some"}, "dataset.studies=some: must be one of first_of_admission"),
        ({"cxr": "x", "iv": "y"}, "together: give dataset.ed"),
        ({"flags": -1}, "dataset.flags=-1"),
        ({"scaling": "robust"}, "dataset.scaling=robust: must be standard or min_max"),
    ],
)
def test_impossible_options_are_refused(make: Callable[..., MIMIC], options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        make(**options)


def test_no_tables_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*MIMIC_clinical_data.csv .*dataset.demo=true"):
        MIMIC(str(tmp_path), store=str(tmp_path / "s"), fold=0).prepare()
    with pytest.raises(UserError, match=r"there is no mimic-cxr-2.0.0-metadata.csv.gz in "):
        folders = {key: str(tmp_path) for key in ("cxr", "iv", "ed")}
        MIMIC(str(tmp_path / "made"), store=str(tmp_path / "s"), fold=0, **folders).prepare()


# ------------------------------------------------------------------------------------------------------- the downloads


def raw_tables(seed: int = 0, patients: int = 40) -> dict[str, pd.DataFrame]:
    """Tables of the downloads: films in and out of admissions, of several views; admissions without codes or triage."""
    rng = np.random.default_rng(seed)
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("films", "labels", "people", "adm", "drg", "ed", "triage")
    }
    start = pd.Timestamp("2150-01-01")
    for p in range(patients):
        subject = 10_000_000 + p
        tables["people"].append({"subject_id": subject, "gender": "FM"[p % 2], "anchor_age": 30 + p, "dod": ""})
        for a in range(1 + p % 3):
            hadm = 20_000_000 + 10 * p + a
            admitted = start + pd.Timedelta(days=40 * a + p, hours=int(rng.integers(24)))
            arrived = admitted - pd.Timedelta(hours=5) if rng.random() < 0.7 else pd.NaT
            row = {"subject_id": subject, "hadm_id": hadm, "admittime": admitted, "edregtime": arrived}
            tables["adm"].append(
                row | {"dischtime": admitted + pd.Timedelta(days=6), "race": ["WHITE", "OTHER"][a % 2]}
            )
            for stay in range(int(rng.integers(0, 3))):
                number = 30_000_000 + 100 * p + 10 * a + stay
                into = admitted + pd.Timedelta(hours=int(rng.integers(-5, 5)))
                tables["ed"].append({"subject_id": subject, "hadm_id": hadm, "stay_id": number, "intime": into})
                if rng.random() < 0.8:
                    vitals = {name: round(float(rng.normal(80, 9)), 1) for name in VITALS}
                    tables["triage"].append({"subject_id": subject, "stay_id": number, **vitals, "pain": "3"})
            for code in rng.choice(["SEPSIS", "HEART FAILURE, MAJOR", "COPD", "RENAL"], int(rng.integers(0, 3))):
                tables["drg"].append({"subject_id": subject, "hadm_id": hadm, "drg_type": "APR", "description": code})
            for s in range(2):
                study = 50_000_000 + 100 * p + 10 * a + s
                taken = admitted + pd.Timedelta(hours=float(rng.integers(-8, 200)), seconds=int(rng.integers(3600)))
                for view in rng.choice(["PA", "AP", "LATERAL", ""], int(rng.integers(1, 4))):
                    tables["films"].append(
                        {
                            "dicom_id": f"{rng.integers(2**60):016x}",
                            "subject_id": subject,
                            "study_id": study,
                            "ViewPosition": view,
                            "StudyDate": int(taken.strftime("%Y%m%d")),
                            "StudyTime": float(taken.strftime("%H%M%S")) + 0.25,
                        }
                    )
                if rng.random() < 0.95:
                    values = rng.choice([1.0, 0.0, -1.0, np.nan], len(FINDINGS), p=[0.3, 0.3, 0.1, 0.3])
                    tables["labels"].append({"subject_id": subject, "study_id": study, **dict(zip(FINDINGS, values))})
    for s in range(3):  # an emergency visit without admission
        tables["ed"].append({"subject_id": 10_000_000, "hadm_id": np.nan, "stay_id": s, "intime": start})
    names = (
        "mimic-cxr-2.0.0-metadata",
        "mimic-cxr-2.0.0-chexpert",
        "patients",
        "admissions",
        "drgcodes",
        "edstays",
        "triage",
    )
    return {name: pd.DataFrame(rows) for name, rows in zip(names, tables.values())}


def needed(raw: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The columns that are read of the files."""
    return {name: frame[RAW[name]] for name, frame in raw.items()}


def slow_link(raw: dict[str, pd.DataFrame], flags: int, studies: str) -> list[dict[str, Any]]:
    """The steps of the module's docstring for one study after the other."""
    rows = {name: frame.to_dict("records") for name, frame in raw.items()}
    people = {r["subject_id"]: r for r in rows["patients"]}
    triage = {r["stay_id"]: r for r in rows["triage"]}
    actual = []
    for labels in rows["mimic-cxr-2.0.0-chexpert"]:
        films = [
            (["PA", "AP"].index(f["ViewPosition"]), when(f), f["dicom_id"])
            for f in rows["mimic-cxr-2.0.0-metadata"]
            if f["study_id"] == labels["study_id"] and f["ViewPosition"] in ("PA", "AP")
        ]
        if not films:
            continue
        _, time, film = min(films)
        inside = []
        for a in rows["admissions"]:
            begins = a["admittime"] if pd.isna(a["edregtime"]) else min(a["admittime"], a["edregtime"])
            if a["subject_id"] == labels["subject_id"] and begins <= time <= a["dischtime"]:
                inside.append((begins, a["hadm_id"], a["race"]))
        if inside:
            actual.append((time, labels["study_id"], film, labels, *max(inside)[1:]))
    used: list[Any] = []
    for entry in sorted(actual, key=lambda e: e[:2]):
        key = {"first_of_admission": entry[4], "first_of_patient": entry[3]["subject_id"], "all": entry[1]}[studies]
        if key not in [k for k, _ in used]:
            used.append((key, entry))
    entries = [entry for _, entry in used]
    codes = {e[4]: {d["description"] for d in rows["drgcodes"] if d["hadm_id"] == e[4]} for e in entries}
    often: dict[str, int] = {}
    for group in codes.values():
        for code in group:
            often[code] = often.get(code, 0) + 1
    chosen = sorted(often, key=lambda code: (-often[code], code))[:flags]
    result = []
    for time, study, film, labels, hadm, race in entries:
        person = people[labels["subject_id"]]
        stays = [(s["intime"], s["stay_id"]) for s in rows["edstays"] if s["hadm_id"] == hadm and s["intime"] <= time]
        signs = triage.get(max(stays)[1], {}) if stays else {}
        row = {"ID": study, "subject_id": labels["subject_id"], "gender": person["gender"]}
        row |= {"anchor_age": person["anchor_age"], "race": race, **{v: signs.get(v, np.nan) for v in VITALS}}
        row |= {f"DRG {c}": int(c in codes[hadm]) if codes[hadm] else np.nan for c in chosen}
        result.append(row | {f: labels[f] for f in FINDINGS} | {"film": film})
    return result


def when(film: dict[str, Any]) -> pd.Timestamp:
    return pd.to_datetime(f"{film['StudyDate']}{int(film['StudyTime']):06d}", format="%Y%m%d%H%M%S")


@pytest.mark.parametrize("studies", ["first_of_admission", "first_of_patient", "all"])
def test_linking_equals_a_loop_over_studies(studies: str) -> None:
    raw = raw_tables()
    clinical, images, counts = link(needed(raw), 3, studies)
    expected = pd.DataFrame(slow_link(raw, 3, studies))
    films = expected.pop("film")
    assert len(clinical) > 20 and clinical.filter(like="DRG ").isna().any(axis=None) and clinical["sbp"].isna().any()
    pd.testing.assert_frame_equal(
        clinical.astype(object).fillna(-9), expected.astype(object).fillna(-9), check_dtype=False
    )
    assert images["img"].tolist() == [f"{film}.jpg" for film in films]
    first = clinical.iloc[0]
    assert images["folder"][0] == f"files/p10/p{first['subject_id']}/s{first['ID']}"
    assert counts["of these as columns"] == 3 and counts[f"studies used ({studies})"] == len(clinical)
    assert counts["Edema: positive"] == (clinical["Edema"] == 1).sum()


def test_the_downloads_become_tables_and_these_a_data_set_divided_by_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_tables()
    homes = {"cxr": "cxr", "iv": "iv/hosp", "ed": "ed/ed"}
    for number, (name, frame) in enumerate(raw.items()):
        folder = tmp_path / list(homes.values())[0 if number < 2 else 1 if number < 5 else 2]
        folder.mkdir(parents=True, exist_ok=True)
        frame.to_csv(folder / f"{name}.csv.gz", index=False)
    _, images, _ = link(needed(raw), 3, "all")
    for folder_name, film in zip(images["folder"], images["img"]):
        (tmp_path / "cxr" / folder_name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 16), 90).save(tmp_path / "cxr" / folder_name / film)
    caplog.set_level("INFO")
    options = {"cxr": str(tmp_path / "cxr"), "iv": str(tmp_path / "iv"), "ed": str(tmp_path / "ed")}
    options |= {"flags": 3, "studies": "all", "side": 8, "fold": 0, "folds": 3, "unseen": "missing"}  # type: ignore[dict-item]
    data = MIMIC(str(tmp_path / "made"), store=str(tmp_path / "store"), **options)  # type: ignore[arg-type]
    data.prepare()
    about = json.loads((tmp_path / "made" / "preparation.json").read_text())
    assert about["counts"]["studies used (all)"] == len(images) and "MIMIC: frontal films: " in caplog.text
    patients = [{name.split("/")[2] for name in data.split(s).names()} for s in ("train", "val", "test")]
    assert not patients[0] & patients[1] and not (patients[0] | patients[1]) & patients[2]
    assert "subject_id" not in data.modalities[1].columns
    caplog.clear()
    data.prepare()
    assert "frontal films" not in caplog.text, "tables of the same files are not made again"


# -------------------------------------------------------------------------------------------------------- a whole run


def configured(tmp_path: Path, *overrides: str) -> DictConfig:
    small = ["trainer=cpu", "trainer.enable_progress_bar=false", "imputer=Zero", "model=ModDrop"]
    small += [f"paths.{key}={tmp_path / key}" for key in ("data", "cache", "output")]
    image = "dataset.encoders.image"
    small += [f"{image}._target_=models.encoders.convolutional.ConvolutionalEncoder", f"+{image}.width=16"]
    small += [f"~{image}.{key}" for key in ("architecture", "weights", "image_size")]
    small += [f"+dataset.encoders.table.{key}" for key in ("width=16", "blocks=1", "heads=2")]
    small += [
        "dataset.side=32",
        "dataset.stored_side=32",
        "dataset.training_defaults.max_epochs=1",
        "dataset.training_defaults.width=16",
    ]
    small += [
        "dataset.training_defaults.heads=2",
        "trainer.limit_train_batches=2",
        "dataset.training_defaults.batch_size=16",
    ]
    return compose_config(*small, *overrides)


@pytest.mark.usefixtures("undrawn")
def test_a_grid_of_folds_and_training_sets_is_run_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(folder: Path) -> None:
        make_mimic(folder, n=N, side=32)

    monkeypatch.setattr("datasets.demo.mimic.make_mimic", small)
    trains, tests = ("none", "nested_1_0.5"), "[none,nested_0_0.5,nested_0_1,nested_1_1]"
    runs = {}
    for train in trains:
        for fold in range(2):
            grid = [f"missing.train={train}", "name=stress_${missing.train}", f"dataset.fold={fold}"]
            cfg = configured(
                tmp_path,
                "dataset=MIMIC",
                "dataset.demo=true",
                *grid,
                f"missing.test={tests}",
                "stages=[prepare,fit,test]",
            )
            pipeline.run(cfg)
            runs[train, fold] = Run(cfg)
    directory = runs["none", 1].directory
    assert str(directory.path).endswith("MIMIC/ModDrop/stress_none/seed0_fold1")
    results = pd.read_csv(directory / "results.csv", keep_default_na=False)
    assert set(results["fold"]) == {1} and set(results["train"]) == {"none"} and len(results) == 4 * 28
    parts = pd.read_csv(directory / "results_per_class.csv", keep_default_na=False)
    assert len(parts) == 4 * 9 * 14 and set(parts["class"]) == set(FINDINGS)
    rows = parts.query("scenario == 'nested_0_0.5' and metric == 'recall'").replace("", np.nan).astype({"value": float})
    present = rows[rows["value"].notna()]
    weighted = np.average(present["value"], weights=present["positives"])
    actual = results.query("scenario == 'nested_0_0.5' and metric == 'recall_weighted'")["value"].astype(float).item()
    assert actual == pytest.approx(weighted, abs=1e-6)
    # The same rows lack the image in every run of a fold; half of them, rounded down.
    masks = [np.load(runs[t, 1].directory / "masks" / "nested_0_0.5.npz")["missing"] for t in trains]
    assert np.array_equal(*masks) and masks[0][:, 0].sum() == len(masks[0]) // 2
    # Half of the training rows lose the table as a whole, validation none but what it never had.
    data = runs["nested_1_0.5", 0].data
    _, cells = data.masks("train", data.missing_train)
    assert cells["table"].all(1).sum() == len(data.split("train")) // 2
    assert not data.masks("val", data.missing_val)[1]["table"].all(1).any()

    metrics = "report.metrics=[auroc_weighted]"
    include = f"report.include=[{tmp_path}/output/MIMIC/ModDrop/stress_*/seed*]"
    cfg = configured(
        tmp_path, "dataset=MIMIC", "name=grid", "stages=[report]", "report.primary=auroc_weighted", metrics, include
    )
    pipeline.run(cfg)
    report = tmp_path / "output" / "MIMIC" / "report" / "grid"
    summary = pd.read_csv(report / "summary.csv", keep_default_na=False)
    assert set(summary["model"]) == {"ModDrop", "ModDrop [train nested_1_0.5]"}
    values = [
        pd.read_csv(runs["none", f].directory / "results.csv", keep_default_na=False).set_index(["scenario", "metric"])[
            "value"
        ]
        for f in range(2)
    ]
    folds = np.array([float(v["nested_0_1", "auroc_weighted"]) for v in values])
    row = summary.query("model == 'ModDrop' and scenario == 'nested_0_1' and metric == 'auroc_weighted'").iloc[0]
    assert float(row["mean"]) == pytest.approx(folds.mean()) and row["n_folds"] == 2 and row["n_seeds"] == 1
    error = folds.std(ddof=1) / 2**0.5
    assert float(row["error"]) == pytest.approx(error)
    text = (report / "summary_auroc_weighted.md").read_text()
    assert (
        f"{100 * folds.mean():.2f} ± {100 * error:.2f}" in text
        and "mean ± standard error over folds (2 per cell)" in text
    )
    sweep = pd.read_csv(report / "sweep.csv", keep_default_na=False).query("metric == 'auroc_weighted'")
    assert sweep["model"].tolist() == ["ModDrop"] * 2 and sweep["scenario"].tolist() == list(trains)
    assert {"degradation_auroc_weighted.png", "sweep_auroc_weighted.png"} <= {
        f.name for f in (report / "figures").iterdir()
    }
    named = modality_names(gather([runs["none", 0].directory.path])[0])
    curves = plots.degradation(summary, "AUROC", model_styles(["ModDrop"]), modalities=named)
    assert curves is not None
    assert {ax.get_title() for ax in curves.axes} == {"MIMIC, image missing", "MIMIC, table missing"}
    page = (report / "report.html").read_text()
    assert "Trained on incomplete data, tested on complete data" in page and "standard error over folds" in page


# --------------------------------------------------------------------------------------------------------- chest X-rays


def test_chest_x_rays_go_the_same_way_on_made_films(tmp_path: Path) -> None:
    csv = make_chest_xray(tmp_path / "data")
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    empty = ("offset", "intubation_present", "in_icu", "needed_supplemental_O2", "temperature", "pO2_saturation")
    counts = ("leukocyte_count", "neutrophil_count", "lymphocyte_count")
    for j, column in enumerate((*empty, *counts)):
        word = j in (1, 2, 3)
        value = (
            np.where(np.arange(len(frame)) % 2 == 0, "N", "Y") if word else (10 + np.arange(len(frame)) % 7).astype(str)
        )
        frame[column] = np.where(np.arange(len(frame)) % (j + 2) == 0, value, "Not visible" if j == 1 else "")
    frame.to_csv(csv, index=False)
    cfg = configured(
        tmp_path,
        "dataset=ChestXray",
        "dataset.fold=1",
        "dataset.folds=3",
        "stages=[prepare,fit,test]",
        "missing.test=[none,nested_0_0.5]",
    )
    pipeline.run(cfg)
    results = pd.read_csv(Run(cfg).directory / "results.csv")
    assert {"accuracy", "auroc", "recall_macro", "mcc", "gmean"} < set(results["metric"])
    data = Run(cfg).data
    assert data.task == "binary" and data.class_names == ["other", "COVID-19"]
    patients = {s: {n.split("-")[0] for n in data.split(s).names()} for s in ("train", "val", "test")}
    assert not patients["train"] & (patients["val"] | patients["test"]) and not patients["val"] & patients["test"]


def test_the_real_chest_x_rays_pack(tmp_path: Path) -> None:
    folder = Path(os.environ.get("DYMO_DATA", CONFIGS.parent / "data")) / "chest_xray"
    if not folder.is_dir():
        pytest.skip(f"no chest X-rays in {folder} (DYMO_DATA names another place); made films cover the code above")
    given = [f"dataset.csv={folder / 'metadata.csv'}", f"dataset.images={folder / 'images'}", "dataset.fold=0"]
    data = build_data(configured(tmp_path, "dataset=ChestXray", *given))
    data.prepare()
    meta = data.store.meta()
    assert meta is not None
    total = {name: sum(meta["class_counts"][s][name] for s in meta["counts"]) for name in data.class_names}
    assert total == {"other": 78, "COVID-19": 396}
    gaps = sum(data.natural_cells(s)["table"].sum(0) for s in meta["counts"])
    share = dict(zip(data.modalities[1].columns, (gaps / sum(total.values())).round(2)))
    assert 0 < share["sex"] < 0.1 and share["leukocyte_count"] > 0.9


def test_the_configuration_names_the_published_protocol() -> None:
    cfg = compose_config("dataset=MIMIC", "model=ModDrop")
    plain = yaml.safe_load(OmegaConf.to_yaml(cfg.dataset, resolve=True))
    assert plain["num_classes"] == len(FINDINGS) == 14 and plain["folds"] == 5 and plain["fold_seed"] == 42
    assert plain["augmentation"]["outside"] == "zeros" and plain["augmentation"]["corruption"] == 0
    xray = compose_config("dataset=ChestXray", "model=ModDrop")
    assert xray.dataset.augmentation.corruption == 0
    assert plain["scaling"] == "min_max" and plain["side"] == 224 and len(plain["scenarios"]) == 9
