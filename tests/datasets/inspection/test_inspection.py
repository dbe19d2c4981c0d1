"""Checks of a user's table: every planted fault in one run, no false alarm, and a suggestion that runs as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import mutual_info_score

from datasets.inspection.check import check_configured, check_unknown
from datasets.inspection.columns import describe_column, merged_levels, spelling_groups
from datasets.inspection.dialect import read_raw, sniff
from datasets.inspection.findings import Finding, rows_text
from datasets.inspection.layout import Layout, layout_of
from datasets.inspection.leaks import information
from datasets.inspection.report import Report
from datasets.inspection.suggestion import yaml_of
from datasets.readers.csv_files import Dialect, read_csv
from tests.makers import make_chest_xray, make_image_table, make_messy_lesions
from tests.test_cli import execute
from trainers import run as pipeline
from trainers.check_table import check_table
from trainers.config.build import build_data, data_arguments
from trainers.config.compose import CONFIGS, compose_config
from utils.errors import UserError
from utils.files import natural_key

PARTS: dict[str, Any] = {
    "name": "Parts",
    "image": "photo",
    "image_suffix": ".jpg",
    "label": "kind",
    "classes": ["nut", "bolt", "screw"],
    "categorical": {"metal": ["brass", "steel"], "finish": None},
    "continuous": ["weight", "length"],
    "missing_values": ["unknown"],
    "group": "box",
    "fractions": [0.5, 0.2, 0.3],
}


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, list[int]]]:
    csv, faults = make_messy_lesions(tmp_path_factory.mktemp("messy"))
    return check_unknown(Layout("Lesions", csv, csv.parent / "photos", None, ())), faults


@pytest.fixture
def parts(tmp_path: Path) -> Callable[..., Report]:
    """Check the table of fasteners after a change of its rows, with changed settings."""
    csv = make_image_table(tmp_path / "parts")

    def check(change: Callable[[pd.DataFrame], Any] | None = None, **settings: Any) -> Report:
        frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
        changed = frame if change is None else change(frame)
        frame = frame if changed is None else changed
        changed_csv = csv.with_name("changed.csv")
        frame.to_csv(changed_csv, index=False)
        return check_configured(
            layout_of({**PARTS, "csv": str(changed_csv), "images": str(csv.parent / "photos"), **settings})
        )

    return check


def placed(report: Report, place: str, words: str, level: str | None = None) -> Finding:
    """The one finding on a place with these words."""
    fitting = [f for f in report.findings if f.place == place and words in f.text and level in (None, f.level)]
    assert len(fitting) == 1, [finding.line() for finding in report.findings]
    return fitting[0]


# ------------------------------------------------------------------------------------------------------ planted faults

PLANTED = [
    ("rare class", "diagnosis", "class 'angioma' has 2 values of 'patient'", "warning"),
    ("blank label", "diagnosis", "no label", "error"),
    ("label spelling", "diagnosis", "'Nevus' (3)", "warning"),
    ("unit", "age", "unit or sign beside the number, for example '63 J.', '71 J.'", "error"),
    ("decimal point", "diameter", "decimal sign '.' instead of ',', for example '7.2', '4.1'", "error"),
    ("unit of the diameter", "diameter", "unit or sign beside the number, for example '6,5 mm'", "error"),
    ("site spelling", "site", "'arm' (2)", "warning"),
    ("missing mark", "site", "seems to mean 'missing': 'n/a'", "note"),
    ("missing image", "images", "not in ", "error"),
    ("unreadable image", "images", "cannot be read: 'IMG_0031', 'IMG_0088'", "error"),
    ("copied image of another patient", "images", "same image as a row of another 'patient'", "warning"),
    ("copied row", "file", "repeats an earlier row", "warning"),
]


@pytest.mark.parametrize(("fault", "place", "words", "level"), PLANTED)
def test_a_planted_fault_is_found_with_its_rows(
    messy: tuple[Report, dict[str, list[int]]], fault: str, place: str, words: str, level: str
) -> None:
    report, faults = messy
    assert list(placed(report, place, words, level).rows) == faults[fault]


def test_every_fault_is_planted_or_listed(messy: tuple[Report, dict[str, list[int]]]) -> None:
    report, faults = messy
    assert {fault for fault, *_ in PLANTED} | {"empty age"} == set(faults)
    assert placed(report, "file", "read with").text == "read with separator ';', decimal sign ',', encoding cp1252"
    assert placed(report, "icd", "gives the label away: it holds 100%").level == "warning"
    assert "holds dates" in placed(report, "visit", "").text and "one value" in placed(report, "clinic", "").text
    assert "names the rows" in placed(report, "case_no", "").text and report.layout.group == "patient"
    assert report.columns["age"].missing == pytest.approx(len(faults["empty age"]) / len(report.cells))
    for words in ("'F' (", "'male' ("):
        assert "merges" in placed(report, "sex", words, "warning").fix
    shown = [finding.level for finding in report.findings]
    assert shown == sorted(shown, key=("error", "warning", "note").index)


def test_row_numbers_are_those_of_a_spreadsheet(messy: tuple[Report, dict[str, list[int]]]) -> None:
    report, faults = messy
    lines = report.layout.csv.read_text(encoding="cp1252").splitlines()
    assert all("J." in lines[row - 1] for row in faults["unit"])


def test_quoted_line_breaks_and_empty_lines_keep_the_row_numbers(tmp_path: Path) -> None:
    csv = tmp_path / "notes.csv"
    csv.write_text('name,note\na,"two\nlines"\n\nb,x\n,\nc,y,z\nd\n')
    table = read_raw(csv)
    assert table.cells.index.tolist() == [2, 4, 6, 7] and table.cells.loc[2, "note"] == "two\nlines"
    problems = {finding.text: finding.rows for finding in table.findings if finding.level == "error"}
    assert problems == {"more cells than the 2 of the header": (6,), "fewer cells than the 2 of the header": (7,)}


def test_a_title_above_the_header_and_headers_without_or_with_equal_names(tmp_path: Path) -> None:
    csv = tmp_path / "export.csv"
    csv.write_text("Export of 1 May\n\na;b;b;;\n1;2;3;4;\n5;6;7;;\n")
    table = read_raw(csv)
    assert list(table.cells) == ["a", "b", "b (2)"] and table.cells.loc[5].tolist() == ["5", "6", "7"]
    lines = [finding.line() for finding in table.findings if finding.level != "note"]
    assert lines == [
        "file: the header is in row 3, after 2 other lines (rows 1 and 2); delete the lines before the header",
        "b: 2 columns have this name; give each column a name of its own",
        "file: column 4 has cells and no name, and is not used; name it in the header",
    ]


# -------------------------------------------------------------------------------------------------------- suggestion


def compose_with(folder: Path, name: str, text: str, *overrides: str) -> Any:
    configs = folder / "configs"
    shutil.copytree(CONFIGS, configs, dirs_exist_ok=True)
    (configs / "dataset" / f"{name}.yaml").write_text(text)
    return compose_config(f"dataset={name}", f"paths.output={folder / 'out'}", *overrides, configs=configs)


def test_the_suggestion_packs_what_the_report_counts_and_trains(
    messy: tuple[Report, dict[str, list[int]]], tmp_path: Path
) -> None:
    report, _ = messy
    assert report.suggestion is not None
    cfg = compose_with(
        tmp_path,
        "Lesions",
        yaml_of(report.suggestion, report.rejected()),
        *("model=ModDrop", "stages=[prepare,fit]", "trainer=cpu", "trainer.enable_progress_bar=false"),
        *("dataset.side=24", "dataset.stored_side=24", f"paths.cache={tmp_path}", "model.training.max_epochs=1"),
    )
    assert cfg.model.module.initialisation == "pytorch" and cfg.dataset.encoders.table.width == 64, "for few rows"
    pipeline.run(cfg)
    data = build_data(cfg)
    assert data.packed_meta()["class_counts"] == report.counts  # type: ignore[attr-defined]
    assert data.packed_meta()["source"]["levels"]["sex"] == ["F", "male"]  # type: ignore[attr-defined]
    again = check_configured(layout_of(OmegaConf.to_container(cfg.dataset, resolve=True)))  # type: ignore[arg-type]
    assert not [f.line() for f in again.findings if f.level == "error"]
    assert again.counts == report.counts


def packed_as_suggested(report: Report, folder: Path, *overrides: str) -> Any:
    """The data of the suggested file, packed by stage prepare without a change."""
    assert report.suggestion is not None, [finding.line() for finding in report.findings]
    text = yaml_of(report.suggestion, report.rejected())
    cfg = compose_with(
        folder,
        report.layout.name,
        text,
        *("model=ModDrop", "stages=[prepare]", "trainer=cpu", f"paths.cache={folder}"),
        *overrides,
    )
    pipeline.run(cfg)
    data = build_data(cfg)
    again = check_configured(layout_of(OmegaConf.to_container(cfg.dataset, resolve=True)))  # type: ignore[arg-type]
    assert data.packed_meta()["class_counts"] == report.counts == again.counts  # type: ignore[attr-defined]
    assert not [finding.line() for finding in again.findings if finding.level == "error"]
    return data


SMALL_IMAGES = ("dataset.side=24", "dataset.stored_side=24")


def test_a_suggestion_for_several_labels_packs_as_it_is(tmp_path: Path) -> None:
    """Three labels, of which one has too few positive rows to be learned; cells without a label and with 'n/a'."""
    csv = make_image_table(tmp_path / "parts")
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    for name in ("nut", "bolt"):
        frame[name] = (frame["kind"] == name).astype(int).astype(str)
    rng = np.random.default_rng(0)
    frame.loc[rng.choice(len(frame), 9, replace=False), "nut"] = ["-1", "", "n/a"] * 3
    frame["rust"] = "0"
    frame.loc[[8, 30], "rust"] = "1"
    frame.drop(columns="kind").to_csv(csv, index=False)
    report = check_unknown(Layout("Rusty", csv, csv.parent / "photos", None, ("nut", "bolt", "rust")))
    suggestion = report.suggestion
    assert suggestion is not None and suggestion.labels[:2] == ("nut", "bolt") and suggestion.classes == {}
    assert "n/a" in suggestion.missing_values and not set(suggestion.inputs) & {"nut", "bolt", "rust"}
    data = packed_as_suggested(report, tmp_path, *SMALL_IMAGES)
    assert data.task == "multilabel" and data.class_names == list(suggestion.labels)
    targets = np.concatenate([data.split(split).read("target").numpy() for split in ("train", "val", "test")])
    known = frame["nut"][frame["nut"].isin(["0", "1"])].astype(int)
    assert (targets[:, 0] == 1).sum() == known.sum() and (targets[:, 0] == -1).sum() == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [(["yes", "no"], "column 'b' has labels other than 1, 0 and -1"), (["1", "1"], "column 'b' has not both 1 and 0")],
)
def test_labels_that_are_not_numbers_have_no_suggestion(tmp_path: Path, values: list[str], message: str) -> None:
    csv = make_image_table(tmp_path / "parts")
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    frame["a"], frame["b"] = np.resize(["0", "1", "1"], len(frame)), np.resize(values, len(frame))
    frame.to_csv(csv, index=False)
    report = check_unknown(Layout("Parts", csv, csv.parent / "photos", None, ("a", "b")))
    assert report.suggestion is None
    placed(report, "file", f"no configuration can be suggested: {message}", "error")


@pytest.mark.parametrize("labels", [("finding",), ("viral", "severe")])
def test_a_suggestion_for_images_and_texts_packs_as_it_is(tmp_path: Path, labels: tuple[str, ...]) -> None:
    csv = make_chest_xray(tmp_path, patients=90)
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    frame["viral"] = frame["finding"].isin(["SARS", "COVID-19"]).astype(int).astype(str)
    frame["severe"] = (frame.index % 3 == 0).astype(int).astype(str)
    # Notes are not repeated as the few of the demo data are.
    words = ["fever", "cough", "effusion", "lungs", "clear", "pneumonia", "count"]
    extra = [" ".join(words[(i * k) % 7] for k in range(1, 9)) + f" day {i}" for i in range(len(frame))]
    frame["clinical_notes"] = (frame["clinical_notes"] + " " + extra).where(frame["clinical_notes"] != "", "")
    frame[["patientid", "filename", *labels, "clinical_notes"]].to_csv(csv, index=False)
    report = check_unknown(Layout("Films", csv, csv.parent / "images", None, labels))
    assert report.suggestion is not None and report.suggestion.text == ("clinical_notes",)
    vocabulary = tmp_path / "vocab" / "bert-base-uncased-vocab.txt"
    data = packed_as_suggested(report, tmp_path, *SMALL_IMAGES, f"dataset.tokenizer={vocabulary}")
    assert data.kinds == {"image": "image", "text": "text"} and (data.task == "multilabel") == (len(labels) > 1)
    absent = sum(int(data.natural_rows(split).get("text", np.zeros(1)).sum()) for split in ("train", "val", "test"))
    assert absent == (frame["clinical_notes"] == "")[report.classes.index - 2].sum() > 0


def test_the_suggestion_says_what_it_does_not_use(messy: tuple[Report, dict[str, list[int]]]) -> None:
    report, _ = messy
    assert report.rejected() == {
        "case_no": "identifier",
        "icd": "gives the label away",
        "visit": "date",
        "clinic": "constant",
    }
    text = yaml_of(report.suggestion, report.rejected(), report.layout.csv.parent)  # type: ignore[arg-type]
    assert "csv: ${paths.data}/lesions.csv" in text and "/tmp" not in text


def check_config(folder: Path, *overrides: str) -> Any:
    return compose_config("stages=[check]", f"paths.output={folder / 'out'}", *overrides)


def test_the_stage_writes_a_report_and_a_configuration_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv, _ = make_messy_lesions(tmp_path)
    output = tmp_path / "Lesions.yaml"
    files = (f"check.csv={csv}", f"check.images={csv.parent / 'photos'}", "check.name=Lesions")
    cfg = check_config(tmp_path, *files, f"check.output={output}", "check.label=diagnosis")
    caplog.set_level("INFO")
    with pytest.raises(SystemExit, match="1"):
        check_table(cfg)
    levels = [record.levelname for record in caplog.records if record.name == "trainers.check_table"]
    assert levels.count("ERROR") == 6 and levels[:6] == ["ERROR"] * 6
    assert "nevus" in caplog.text and "116 rows, 11 columns: 6 errors, 9 warnings, 7 notes" in caplog.text
    assert {file.name for file in (tmp_path / "out" / "Lesions" / "check").iterdir()} == {"check.md", "check.json"}
    first = output.read_text()
    assert "csv: " + str(csv) in first
    output.write_text("mine")
    with pytest.raises(SystemExit):
        check_table(cfg)
    assert output.read_text() == "mine" and "exists and differs from the suggestion: not written" in caplog.text
    cfg.overwrite = True
    with pytest.raises(SystemExit):
        check_table(cfg)
    assert output.read_text() == first


def test_the_stage_stops_the_other_stages_at_errors(tmp_path: Path) -> None:
    csv = make_image_table(tmp_path / "parts")
    command = [
        *("dataset=ImageTable", "dataset.name=Parts", f"dataset.csv={csv}", f"dataset.images={csv.parent / 'photos'}"),
        *("dataset.image=photo", "dataset.image_suffix=.jpg", "dataset.label=kind", "dataset.continuous=[length]"),
        *("dataset.side=16", "dataset.stored_side=16", "model=ModDrop", "trainer=cpu", "stages=[check,prepare]"),
        *(f"paths.cache={tmp_path / 'cache'}", f"paths.output={tmp_path / 'out'}"),
    ]
    status, lines = execute([*command, "dataset.classes=[nut,bolt]"], tmp_path / "work")
    assert status == 1 and any("label of no class: 'screw'" in line for line in lines)
    assert not (tmp_path / "cache").exists()
    status, lines = execute([*command, "dataset.classes=[nut,bolt,screw]"], tmp_path / "work")
    assert status == 0 and "nothing to remark" in "".join(lines)
    assert list((tmp_path / "cache").glob("Parts-*/meta.json"))
    assert (tmp_path / "out" / "Parts" / "check" / "check.md").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "dataset=Digits names none: give check.csv=FILE"),
        (("dataset=ImageTable",), "dataset=ImageTable names none"),
        (("check.csv=absent.csv", "check.images=absent"), "check.images=absent: there is no such folder"),
        (("check.csv=absent.csv",), "there is no table absent.csv"),
        (("check.csv=a.csv", "check.name=a/b"), "check.name=a/b: must be letters"),
    ],
)
def test_bad_options_of_the_stage(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_table(check_config(tmp_path, *overrides))


def test_the_report_says_the_same_in_markdown_and_json(messy: tuple[Report, dict[str, list[int]]]) -> None:
    report, faults = messy
    content = json.loads(report.json())
    assert [f["rows"] for f in content["findings"] if f["text"] == "no label"] == [faults["blank label"]]
    assert {c["column"]: c["use"] for c in content["columns"]}["patient"] == "group"
    text = report.markdown()
    assert all(finding.text in text for finding in report.findings)
    assert "| nevus | " in text and f"{len(report.cells)} rows, 11 columns: 6 errors" in report.lines()[-1][1]
    assert rows_text([3]) == "row 3" and rows_text(range(1, 11)) == "10 rows: 1, 2, 3, 4, 5, 6, 7, 8, ..."


# ------------------------------------------------------------------------------------------------- no false alarm


def alarms(report: Report) -> list[str]:
    return [finding.line() for finding in report.findings if finding.level != "note"]


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_table_raises_no_alarm(tmp_path: Path, seed: int) -> None:
    csv = make_image_table(tmp_path, seed=seed)
    files = {"csv": str(csv), "images": str(tmp_path / "photos")}
    report = check_configured(layout_of({**PARTS, **files}))
    assert alarms(report) == []
    report = check_unknown(Layout("Parts", csv, tmp_path / "photos", None, ("kind",)))
    assert alarms(report) == [] and report.suggestion is not None
    assert report.layout.image_suffix == ".jpg" and report.layout.group == "box"
    assert list(report.suggestion.categorical) == ["metal", "finish"]
    assert report.suggestion.continuous == ("weight", "length")


def test_the_counts_are_those_of_the_packed_data(tmp_path: Path) -> None:
    make_chest_xray(tmp_path)
    cfg = compose_config("dataset=ChestXrayNotes", f"paths.data={tmp_path}")
    settings = OmegaConf.to_container(cfg.dataset, resolve=True)
    assert isinstance(settings, dict) and "mask_words" in data_arguments(cfg)
    report = check_configured(layout_of(settings))  # type: ignore[arg-type]
    assert alarms(report) == []
    data = build_data(cfg)
    data.prepare()
    assert data.packed_meta()["class_counts"] == report.counts  # type: ignore[attr-defined]


def test_several_labels_and_folds(parts: Callable[..., Report]) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame["heavy"] = np.where(np.arange(len(frame)) % 2, "1", "0")
        frame["rusty"] = np.where(np.arange(len(frame)) % 3, "0", "1")
        frame.loc[4, "rusty"] = "yes"

    report = parts(change, label=["heavy", "rusty"], classes=None, categorical={"metal": None}, group=None)
    assert [f.line() for f in report.of_level("error")] == [
        "rusty: label that is none of 1, 0 and -1 (no label) (row 6); correct them"
    ]
    assert list(report.counts["train"]) == ["heavy", "rusty"]
    report = parts(fold=1, folds=4)
    assert sum(sum(split.values()) for split in report.counts.values()) == 60 and alarms(report) == []


# ------------------------------------------------------------------------------------------ faults of a configuration


def test_everything_wrong_with_a_configuration_is_said_at_once(parts: Callable[..., Report]) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame["serial"] = [f"S{i:03d}x" for i in range(len(frame))]
        frame["colour"] = "grey"
        frame["code"] = frame["kind"].map({"nut": "a", "bolt": "b", "screw": "c"})
        frame.loc[3, "kind"] = "rivet"
        frame.loc[7, "metal"] = "Steel"
        frame.loc[9, "finish"] = "ZINC"
        frame.loc[11, "weight"] = "n/a"
        frame.loc[13, "box"] = ""

    inputs = {"metal": ["brass", "steel"], "finish": None, "serial": None, "colour": None, "code": None, "length": None}
    report = parts(change, categorical=inputs, continuous=["weight"])
    expected = {
        ("error", "kind", (5,)),
        ("error", "metal", (9,)),
        ("error", "weight", (13,)),
        ("error", "box", (15,)),
        ("warning", "finish", (11,)),
        ("warning", "serial", ()),
        ("warning", "colour", ()),
        ("warning", "code", ()),
        ("warning", "length", ()),
    }
    assert expected <= {(finding.level, finding.place, finding.rows) for finding in report.findings}


@pytest.mark.parametrize(("unseen", "level"), [("refuse", "error"), ("missing", "warning")])
def test_a_value_that_is_no_level_is_an_error_only_where_prepare_refuses_it(
    parts: Callable[..., Report], unseen: str, level: str
) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[7, "metal"] = "tin"

    assert placed(parts(change, unseen=unseen), "metal", "none of the 2 levels: 'tin'").level == level


def test_columns_that_are_not_there_are_named_with_the_nearest(parts: Callable[..., Report]) -> None:
    report = parts(image="foto", continuous=["wieght"])
    assert report.lines()[-1][1].endswith("60 rows, 7 columns: 2 errors") and "wieght" in report.markdown()
    assert [finding.line() for finding in report.findings] == [
        "foto: the table has no such column; did you mean 'photo'?",
        "wieght: the table has no such column; did you mean 'weight'?",
    ]


def test_the_wrong_dialect_is_reported_beside_everything_else(tmp_path: Path) -> None:
    csv, faults = make_messy_lesions(tmp_path)
    settings = {"name": "L", "csv": str(csv), "images": str(tmp_path / "photos"), "image": "photo"}
    options = {"image_suffix": ".jpg", "label": "diagnosis", "classes": ["nevus"], "continuous": ["diameter"]}
    report = check_configured(layout_of({**settings, **options}))
    assert placed(report, "file", "not utf-8-sig").fix == "set dataset.encoding: cp1252"
    assert placed(report, "file", "separated by").fix == "set dataset.separator: ';'"
    assert placed(report, "diameter", "decimal sign").fix == "set dataset.decimal: ','"
    assert faults["missing image"] == list(placed(report, "images", "not in").rows)


def test_images_and_groups_in_several_splits(parts: Callable[..., Report], tmp_path: Path) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame["part"] = np.where(np.arange(len(frame)) % 4, "train", "test")
        frame.loc[5, ["photo", "kind", "part"]] = ["p4", "bolt", "train"]

    values = {"train": "train", "test": "test"}
    report = parts(change, split="part", split_values=values)
    assert placed(report, "splits", "1 image in several splits").rows == (6, 7)
    assert len(placed(report, "splits", "groups in several splits", "error").rows) > 6
    report = parts(change, split="part", split_values={"train": "train"}, group=None)
    assert len(placed(report, "part", "values name no split: 'test'").rows) == 15


def test_a_missing_or_unusable_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    for content, message in (
        (None, "there is no table"),
        (b"", "is empty"),
        (b"PK\x03\x04...", "is a workbook"),
        (b"a,b\n", "a header and no rows"),
    ):
        csv = tmp_path / "table.csv"
        if content is not None:
            csv.write_bytes(content)
        with pytest.raises(UserError, match=message):
            check_unknown(Layout("T", csv, tmp_path, None, ()))


def animals(folder: Path, n: int = 60, classes: Sequence[str] = ("cat", "dog")) -> pd.DataFrame:
    """A clean table, and the images that it names."""
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (4, 4, 3)).astype(np.uint8)).save(folder / f"a{i}.png")
    ages = rng.integers(1, 30, n).astype(str)
    return pd.DataFrame({"image": [f"a{i}.png" for i in range(n)], "label": np.resize(classes, n), "age": ages})


def checked(folder: Path, frame: pd.DataFrame) -> Report:
    frame.to_csv(folder / "table.csv", index=False)
    return check_unknown(Layout("Animals", folder / "table.csv", folder, None, ()))


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"label": "cat"}, "file", "no configuration can be suggested: all labels are the same"),
        ({"age": "", "sex": ""}, "file", "no column can be an input"),
        ({"image": [f"b{i}.png" for i in range(60)]}, "file", "no row has an image that can be read"),
    ],
)
def test_nothing_is_suggested_from_which_nothing_can_be_learned(
    tmp_path: Path, changes: dict[str, Any], place: str, words: str
) -> None:
    report = checked(tmp_path, animals(tmp_path).assign(**changes))
    assert report.suggestion is None and placed(report, place, words, "error")
    small = checked(tmp_path, animals(tmp_path, 3))
    assert "too few rows" in placed(small, "file", "", "error").text


def test_nothing_is_suggested_without_label_or_images(tmp_path: Path) -> None:
    csv = tmp_path / "table.csv"
    csv.write_text("a,b\n1,x\n2,y\n")
    report = check_unknown(Layout("T", csv, tmp_path, None, ()))
    assert report.suggestion is None and {f.place for f in report.of_level("error")} == {"file", "images"}


@pytest.mark.parametrize(
    ("write", "instead"),
    [("photos/{}.png", "a0.png"), ("C:\\data\\{}.png", "a0.png"), ("{}.PNG", "a0.png"), ("IMG_{}", None)],
)
def test_nearly_right_names_of_images(tmp_path: Path, write: str, instead: str | None) -> None:
    frame = animals(tmp_path)
    frame["image"] = [write.format(f"a{i}") for i in range(len(frame))]
    fix = placed(checked(tmp_path, frame), "images", "not in ", "error").fix
    assert fix.startswith(f"write '{instead}' instead of " if instead else "restore the files")


@pytest.mark.parametrize("classes", [("1.0", "2.0"), ("yes", "no"), tuple(f"c{i}" for i in range(12))])
def test_labels_that_yaml_or_the_kinds_of_columns_could_mistake(tmp_path: Path, classes: Sequence[str]) -> None:
    report = checked(tmp_path, animals(tmp_path, 120, classes))
    assert alarms(report) == [] and report.suggestion is not None
    read = yaml.safe_load(yaml_of(report.suggestion, {}))
    assert read["classes"] == sorted(classes, key=natural_key) and all(n > 0 for n in report.counts["val"].values())


def test_a_column_of_splits_is_followed(tmp_path: Path) -> None:
    frame = animals(tmp_path).assign(part=["Train", "train", "training", "Valid", "test"] * 12)
    report = checked(tmp_path, frame)
    assert report.suggestion is not None and report.suggestion.split["split"] == "part"
    assert {split: sum(counts.values()) for split, counts in report.counts.items()} == {
        "train": 36,
        "val": 12,
        "test": 12,
    }
    without_val = checked(tmp_path, frame.assign(part=["train", "test"] * 30))
    assert without_val.suggestion is not None and "split" not in without_val.suggestion.split
    assert without_val.rejected() == {"part": "split"}


def test_numbers_with_units_or_thousands_are_no_inputs(tmp_path: Path) -> None:
    frame = animals(tmp_path)
    frame["share"] = [f"{i % 37} %" for i in range(60)]
    frame["price"] = [f"{900 + 13 * i:,}" for i in range(60)]
    report = checked(tmp_path, frame)
    assert len(placed(report, "share", "unit or sign", "error").rows) == 60
    assert placed(report, "price", "between thousands, or a decimal comma", "error").rows[0] == 10
    assert report.rejected() == {"share": "not numbers alone", "price": "not numbers alone"}


def test_a_column_that_may_follow_from_the_label_is_no_input(tmp_path: Path) -> None:
    frame = animals(tmp_path, 160)
    is_cat, number = frame["label"] == "cat", np.arange(160)
    frame["how"] = np.where(is_cat & (number % 4 == 0), "seen at home", np.where(number % 3 == 0, "x", "y"))
    frame["place"] = np.where(is_cat & (number < 10), "barn", "garden")  # five rows may be chance
    report = checked(tmp_path, frame)
    finding = placed(report, "how", "all 40 rows with 'seen at home' have the label 'cat'", "warning")
    assert finding.text.startswith("may follow from the label")
    assert report.rejected()["how"] == "may follow from the label" and "place" not in report.rejected()


def test_texts_that_name_their_class_unless_the_words_are_masked(tmp_path: Path) -> None:
    frame = animals(tmp_path)
    frame["note"] = [f"number {i} is a {'Cats' if i % 4 == 0 else 'pet'} of mine" for i in range(60)]
    report = checked(tmp_path, frame)
    assert placed(report, "note", "name of its class", "warning").rows == tuple(range(2, 62, 4))
    assert report.rejected() == {"note": "text"} and "note" not in report.shares
    layout = {"name": "T", "csv": str(tmp_path / "table.csv"), "image": "image", "label": "label", "text": "note"}
    for words, alarm in ((["ca"], False), (["dog"], True)):
        again = check_configured(layout_of({**layout, "classes": ["cat", "dog"], "mask_words": words}))
        assert bool(alarms(again)) == alarm


def test_a_table_without_a_header_is_suspected(tmp_path: Path) -> None:
    animals(tmp_path).to_csv(tmp_path / "table.csv", index=False, header=False)
    report = check_unknown(Layout("T", tmp_path / "table.csv", tmp_path, None, ()))
    assert placed(report, "file", "the header has the numbers", "warning")


# ------------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("age", [str(20 + i % 50) for i in range(100)], "continuous"),
        ("size", [f"{i / 7:.2f}" for i in range(100)], "continuous"),
        ("size", [f"{i / 7:.1f} mm" if i % 3 == 0 else f"{i / 7:.1f}" for i in range(100)], "continuous"),
        ("grade", [str(i % 4) for i in range(100)], "categorical"),
        ("nr", [str(3 * i) for i in range(100)], "identifier"),
        ("case", [str(i + 7) for i in range(100)], "identifier"),
        ("file", [f"img{i}" for i in range(100)], "identifier"),
        ("patient", [str(i // 2) for i in range(100)], "group"),
        ("box", [f"B-{i // 3}" for i in range(100)], "group"),
        ("seen", [f"{1 + i % 28}.{1 + i % 12}.2024" for i in range(100)], "date"),
        ("seen", [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d} 10:30" for i in range(100)], "date"),
        ("note", [f"the lesion number {i} is brown" for i in range(100)], "text"),
        ("site", ["arm", "leg", "back", "face"] * 25, "categorical"),
        ("site", ["arm"] * 100, "constant"),
        ("site", [""] * 100, "empty"),
        ("stage", [f"T{i % 4}" for i in range(100)], "categorical"),
    ],
)
def test_kinds_of_columns(name: str, values: list[str], kind: str) -> None:
    assert describe_column(pd.Series(values, name=name), ".", []).kind == kind


def test_spellings_are_merged_and_different_values_are_not() -> None:
    values = ["F", "f", "female", "Female", "M", "male", "unclear"]
    assert merged_levels(values) == {"F": ["F", "f", "female", "Female"], "M": ["M", "male"], "unclear": ["unclear"]}
    assert merged_levels(["S", "M", "L"]) == {"L": ["L"], "M": ["M"], "S": ["S"]}
    assert not spelling_groups(["1", "-1", "1.5", "15", "T1", "T2", "A", "AB"])
    assert spelling_groups(["basal cell", "Basal-Cell", "basal_cell"])[0].total() == 3


def test_information_is_corrected_for_chance() -> None:
    rng = np.random.default_rng(0)
    target = rng.choice(["a", "b", "c"], 400, p=[0.6, 0.3, 0.1])
    assert information(target, target) == pytest.approx(1) and information(["x"] * 400, target) == 0
    noise = rng.integers(0, 60, 400)
    assert abs(information(noise, target)) < 0.05
    # The expectation, by shuffling.
    cells = np.where(rng.random(400) < 0.7, target, rng.choice(["a", "b", "c"], 400))
    shuffled = np.mean([mutual_info_score(target, rng.permutation(cells)) for _ in range(300)])
    entropy = mutual_info_score(target, target)
    by_shuffling = (mutual_info_score(target, cells) - shuffled) / (entropy - shuffled)
    assert information(cells, target) == pytest.approx(by_shuffling, abs=0.005)
    assert information(cells, target) < information(np.char.add(cells, target), target)


# ------------------------------------------------------------------------------------------------------------- dialect

WORDS = st.text("abcäöü ,;.|\t'-", min_size=0, max_size=8).map(lambda word: f"x{word}")
FILES = st.fixed_dictionaries(
    {
        "separator": st.sampled_from([",", ";", "tab", "|"]),
        "decimal": st.sampled_from([".", ","]),
        "encoding": st.sampled_from(["utf-8-sig", "utf-16", "cp1252"]),
        "words": st.lists(WORDS, min_size=6, max_size=40),
        "seed": st.integers(0, 999),
    }
)


@given(FILES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_dialect_is_recognised_and_its_cells_are_read(tmp_path: Path, file: dict[str, Any]) -> None:
    rng = np.random.default_rng(file["seed"])
    n = len(file["words"])
    numbers = [f"{x:.2f}".replace(".", file["decimal"]) for x in rng.normal(size=n)]
    frame = pd.DataFrame({"word": file["words"], "höhe": numbers, "n": [str(i) for i in rng.integers(9, size=n)]})
    dialect = Dialect(file["separator"], file["decimal"], file["encoding"])
    csv = tmp_path / "table.csv"
    frame.to_csv(csv, index=False, sep=dialect.delimiter, encoding=dialect.encoding)
    assert sniff(csv) == dialect
    table = read_raw(csv)
    pd.testing.assert_frame_equal(table.cells.reset_index(drop=True), read_csv(csv, dialect=dialect), check_dtype=False)
    assert table.cells.index.tolist() == list(range(2, n + 2))
    np.testing.assert_allclose(dialect.numbers(table.cells["höhe"]), [float(x.replace(",", ".")) for x in numbers])


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_fails_otherwise_than_with_an_error_of_the_user(tmp_path: Path, content: bytes) -> None:
    csv = tmp_path / "table.csv"
    csv.write_bytes(content)
    with suppress(UserError):
        check_unknown(Layout("T", csv, tmp_path, None, ()))


def test_the_stage_does_not_import_torch() -> None:
    code = "import sys, run, trainers.check_table; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_split_that_cannot_be_drawn_is_a_finding(parts: Callable[..., Report]) -> None:
    def change(frame: pd.DataFrame) -> None:
        frame.loc[0, "kind"] = "rivet"

    report = parts(change, classes=["nut", "bolt", "screw", "rivet"], group=None)
    assert "cannot divide 60 rows" in placed(report, "splits", "", "error").text and report.counts == {}
    assert "too few" in placed(report, "kind", "class 'rivet' has 1 row").text


def test_rows_that_were_entered_twice_stay_in_one_split(tmp_path: Path) -> None:
    """A column of patients that seems to name the rows keeps them together; otherwise, the names of the images do."""
    frame = animals(tmp_path, 120)
    again = pd.concat([frame, frame.iloc[:8]], ignore_index=True)
    with_patient = again.assign(patient=[f"p{100 + i % 120}" for i in range(128)], number=range(1, 129))
    for table, group in ((with_patient, "patient"), (again, "image"), (frame, None)):
        report = checked(tmp_path, table)
        assert report.suggestion is not None and report.suggestion.group == group
        assert not [finding.line() for finding in report.findings if finding.place == "splits"]
