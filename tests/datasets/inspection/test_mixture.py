"""Checks of a table with any mix of modalities: planted faults, shares of missing content, a suggestion that runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from datasets.from_csv import FromCSV
from datasets.inspection.check import check_configured, check_unknown
from datasets.inspection.findings import Finding
from datasets.inspection.layout import Layout
from datasets.inspection.mixture import mixture_layout
from datasets.inspection.report import Report
from datasets.inspection.suggestion import yaml_of
from tests.mixed import LACKING, MODALITIES, arguments, as_override, make_mixed
from trainers.check_table import check_table
from trainers.config.compose import compose_config
from utils.errors import UserError

ROWS = 60


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixed(tmp_path_factory.mktemp("mixture"), ROWS)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, csv: Path) -> Path:
    """Rows 10 to 16 with a fault each (the header is row 1)."""
    folder = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(csv.parent, folder)
    (folder / "images" / "film8.png").write_bytes(b"no image")
    (folder / "images" / "lateral10.png").unlink()
    (folder / "sounds" / "heart10.wav").write_bytes(b"no sound")
    np.save(folder / "arrays" / "ecg11.npy", np.zeros((9, 3)))
    np.save(folder / "arrays" / "ecg12.npy", np.full((9, 2), np.nan))
    np.savez(folder / "arrays" / "genes13.npz", np.zeros(4))
    shutil.rmtree(folder / "clips" / "clip14")
    (folder / "clips" / "clip14").mkdir()
    shutil.copy(folder / "sounds" / "heart20.wav", folder / "sounds" / "heart30.wav")
    return folder / "patients.csv"


def checked(csv: Path, **changes: Any) -> Report:
    return check_configured(mixture_layout(arguments(csv, **changes)))


def placed(report: Report, place: str, words: str, level: str) -> Finding:
    fitting = [f for f in report.findings if f.place == place and words in f.text and f.level == level]
    assert len(fitting) == 1, [finding.line() for finding in report.findings]
    return fitting[0]


@pytest.fixture(scope="module")
def report(damaged: Path) -> Report:
    return checked(damaged)


FAULTS = [
    ("film", "cannot be read: 'film8' (the first: ", (10,)),
    ("lateral", "'lateral10.png'", (12,)),
    ("heart", "cannot be read: 'heart10'", (12,)),
    ("ecg", "cannot be read: 'ecg11', 'ecg12' (the first: shape (9, 3), expected (time steps, 2))", (13, 14)),
    ("genes", "cannot be read: 'genes13' (the first: shape (4,), expected (5,))", (15,)),
    ("clip", "cannot be read: 'clip14' (the first: ", (16,)),
]


@pytest.mark.parametrize(("place", "words", "rows"), FAULTS)
def test_a_file_of_any_kind_that_cannot_be_read_is_found(
    report: Report, place: str, words: str, rows: tuple[int, ...]
) -> None:
    finding = placed(report, place, words, "error")
    assert finding.rows == rows and f"set dataset.modalities.{place}.unreadable=missing" in finding.fix


def test_nothing_else_is_an_error_and_copies_are_named(report: Report, csv: Path) -> None:
    assert len(report.of_level("error")) == len(FAULTS)
    assert placed(report, "heart", "same sound as a row of another 'patient'", "warning").rows == (22, 32)
    healthy = checked(csv)
    assert not healthy.of_level("error")
    unused = {f.place: f.text for f in healthy.findings if "without a row" in f.text}
    assert unused == {
        "film": "3 files without a row: 'film4.png', 'lateral5.png', 'lateral9.png'",
        "heart": "1 file without a row: 'heart3.wav'",
        "ecg": "2 files without a row: 'ecg5.npy', 'genes6.npz'",
    }
    refused = checked(csv, modalities={**MODALITIES, "film": {**MODALITIES["film"], "empty": "refuse"}})
    assert placed(refused, "film", "no image name", "error").rows == (LACKING["film"][0] + 2,)


def test_what_the_check_finds_stops_stage_prepare(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 59 image files of 'film' cannot be read.*unreadable=missing"):
        FromCSV(store=str(tmp_path / "store"), **arguments(damaged)).prepare()
    spared = {name: {**o, "unreadable": "missing"} if "column" in o else o for name, o in MODALITIES.items()}
    noted = checked(damaged, modalities=spared)
    assert not noted.of_level("error")
    FromCSV(store=str(tmp_path / "store"), **arguments(damaged, modalities=spared)).prepare()


def test_shares_of_what_is_missing_are_those_of_the_files(csv: Path) -> None:
    by_name = {m["modality"]: m for m in checked(csv).describe_modalities()}
    assert [m["kind"] for m in by_name.values()] == [options["kind"] for options in MODALITIES.values()]
    for name, rows in LACKING.items():
        assert by_name[name]["missing"] == pytest.approx(len(rows) / ROWS)
    frame, cells = pd.read_csv(csv, dtype=str, keep_default_na=False), []
    for name in frame["ecg"][frame["ecg"] != ""]:
        series = np.load(csv.parent / "arrays" / f"{name}.npy")[:24]
        cells.append((np.isnan(series).sum() + 2 * (24 - len(series))) / 48)
    assert by_name["ecg"]["missing_cells"] == pytest.approx(np.mean(cells))
    table = frame[["sex", "age", "crp"]].drop(index=LACKING["labs"])
    assert by_name["labs"]["missing_cells"] == pytest.approx((table == "").to_numpy().mean())
    assert by_name["film"]["missing_cells"] == by_name["note"]["missing_cells"] == 0


def test_stage_check_reports_a_configuration_of_any_mix(csv: Path, tmp_path: Path) -> None:
    given = [f"++dataset.{key}={as_override(value)}" for key, value in arguments(csv, "labs", "ecg").items()]
    check_table(compose_config("dataset=FromCSV", *given, "stages=[check]", f"paths.output={tmp_path}"))
    text = (tmp_path / "Mixed" / "check" / "check.md").read_text()
    assert "## Modalities" in text and "| ecg | series |" in text
    content = json.loads((tmp_path / "Mixed" / "check" / "check.json").read_text())
    assert [m["modality"] for m in content["modalities"]] == ["labs", "ecg"] and content["class_counts"]["train"]
    with pytest.raises(UserError, match=r"dataset\.modalities is empty"):
        check_table(compose_config("dataset=FromCSV", f"dataset.csv={csv}", "dataset.label=state", "stages=[check]"))


def test_a_suggestion_for_columns_of_files_runs_as_it_is(damaged: Path, tmp_path: Path) -> None:
    report = check_unknown(Layout("Mixed", damaged, damaged.parent, None, ("state",)))
    assert report.suggestion is not None, [finding.line() for finding in report.findings]
    text = yaml_of(report.suggestion, report.rejected())
    settings = yaml.safe_load(text)
    assert settings.pop("defaults") == ["FromCSV", "parts/small@_here_", "_self_"]
    assert settings.pop("encoder_set") == "small"
    kinds = {name: options["kind"] for name, options in settings["modalities"].items()}
    expected = {name: MODALITIES[name]["kind"] for name in ("film", "lateral", "heart", "ecg", "genes", "clip")}
    assert kinds == expected | {"table": "table"} and "note (gives the label away)" in text
    ecg = settings["modalities"]["ecg"]
    assert ecg == {
        **{"kind": "series", "column": "ecg", "folder": "arrays", "suffix": ".npy"},
        **{"channels": 2, "length": 30, "unreadable": "missing"},
    }
    assert settings["modalities"]["heart"] | {"rate": 8000, "seconds": 0.5} == settings["modalities"]["heart"]
    data = FromCSV(store=str(tmp_path / "store"), tokenizer=None, **settings)
    data.prepare()
    assert list(data.kinds) == list(kinds) and data.class_names == ["ill", "well"]
    assert Image.open(damaged.parent / "images" / "film0.png").size != data.modalities[0].shape[1:]
