"""The story of docs/predictions.md as it is written: a messy table, a suggested configuration, three models, a report,
a bundle in another folder, and predictions for 20 incomplete rows without labels."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf

from tests.conftest import empty_pictures
from tests.contracts.test_imputers import SMALL as SMALL_IMPUTERS
from tests.makers import make_messy_lesions
from trainers import run as pipeline
from trainers.check_table import check_table
from trainers.config.compose import CONFIGS, compose_config
from trainers.predictor import load

# So that every training takes seconds.
SMALL = [
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "dataset.side=28",
    "dataset.stored_side=28",
    "imputer.quality.judge_epochs=1",
    "imputer.training.max_epochs=1",
]
SMALL_MODELS = {
    "DyMo": [
        "model.backbone.module.width=128",
        "model.backbone.module.prototype_start=1",
        "distance_metric=squared_euclidean",
    ],
    "ModDrop": ["model.module.width=128"],
    "LogitAverage": [],
}
ENCODERS = {
    "image": {"_target_": "models.encoders.convolutional.PolyMNISTEncoder", "width": 128},
    "table": {"_target_": "models.encoders.table.TableEncoder", "width": 128, "blocks": 1, "heads": 2},
}


def commands() -> list[list[str]]:
    """Arguments of the commands in the first section of the page."""
    text = (CONFIGS.parent / "docs" / "predictions.md").read_text()
    section = text.split("\n## ")[1]
    return [shlex.split(line)[2:] for line in re.findall(r"^python run\.py .*$", section, re.M)]


def python_blocks(heading: str) -> list[str]:
    """The Python examples of a section."""
    text = (CONFIGS.parent / "docs" / "predictions.md").read_text()
    (section,) = [part for part in text.split("\n## ") if part.startswith(heading)]
    return re.findall(r"```python\n(.*?)```", section, re.S)


def small(arguments: list[str], configs: Path) -> DictConfig:
    """The configuration of a command, with small encoders and six epochs."""
    overrides, dataset = list(arguments), "dataset=Lesions" in arguments
    if dataset:
        model = next((a.partition("=")[2] for a in arguments if a.startswith("model=")), "DyMo")
        overrides += [*SMALL, *SMALL_MODELS[model], *SMALL_IMPUTERS["MoPoE"] * (model == "DyMo")]
        trained = "model.backbone" if model == "DyMo" else "model"
        overrides += [f"{trained}.training.max_epochs=6", f"{trained}.training.batch_size=16"]
    cfg = compose_config(*overrides, configs=configs)
    if dataset:
        OmegaConf.set_struct(cfg, False)
        cfg.dataset.encoders = ENCODERS
        OmegaConf.set_struct(cfg, True)
    return cfg


def test_the_story_of_the_page_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_messy_lesions(tmp_path / "data" / "lesions")
    configs = Path(shutil.copytree(CONFIGS, tmp_path / "configs"))
    checking, *training, report, predicting = commands()
    assert len(training) == 3 and "stages=[report]" in report
    with pytest.raises(SystemExit):  # there are errors, which the suggestion works around
        check_table(compose_config(*checking, f"check.output={configs / 'dataset' / 'Lesions.yaml'}", configs=configs))
    page = (CONFIGS.parent / "docs" / "predictions.md").read_text()
    assert (configs / "dataset" / "Lesions.yaml").read_text() in page
    with empty_pictures():
        for arguments in (*training, report):
            pipeline.run(small(arguments, configs))
    assert (tmp_path / "outputs" / "Lesions" / "report" / "default" / "report.html").is_file()

    clinic = tmp_path / "clinic"
    clinic.mkdir()
    (bundle,) = (tmp_path / "outputs" / "Lesions").glob("DyMo*/default/seed0/bundle.zip")
    shutil.copy(bundle, clinic / "bundle.zip")
    csv, _ = make_messy_lesions(tmp_path / "later", seed=7)
    shutil.copytree(csv.parent / "photos", clinic / "photos")
    rows = pd.read_csv(csv, sep=";", dtype=str, keep_default_na=False, encoding="cp1252").iloc[:20]
    rows = rows.drop(columns=["diagnosis", "icd"])
    rows.loc[rows.index[0], "photo"] = ""
    rows.loc[rows.index[1], ["sex", "age", "diameter", "site"]] = ""
    rows.loc[rows.index[2], ["photo", "sex", "age", "diameter", "site"]] = ""
    rows.to_csv(clinic / "new.csv", sep=";", index=False, encoding="cp1252")
    shutil.rmtree(tmp_path / "data")  # neither raw data nor packed arrays are needed
    monkeypatch.chdir(clinic)
    pipeline.run(small(predicting, configs))

    table = pd.read_csv(clinic / "predictions.csv", dtype={"id": str}, keep_default_na=False)
    assert len(table) == 20 and "label" not in table
    assert table["missing"].tolist()[:3] == ["image", "table", "image;table"]
    assert table["prediction"].tolist()[2] == "" and (table["prediction"].drop(2) != "").all()
    assert set(table["prediction"]) <= {"nevus", "melanoma", "basal cell carcinoma", ""}
    assert set(table["accepted"][1].split(";") + table["rejected"][1].split(";")) - {""} == {"table"}
    assert set(table["accepted"][0].split(";") + table["rejected"][0].split(";")) - {""} == {"image"}
    assert len(list((clinic / "recovered" / "image").glob("*.png"))) > 0
    recovered = pd.read_csv(clinic / "recovered" / "table" / "recovered.csv", dtype={"id": str})
    assert table["id"][1] in set(recovered["id"]) and recovered["sex"].isin(["F", "male"]).all()

    # The same in a notebook.
    (block,) = python_blocks("In Python")
    notebook: dict[str, Any] = {}
    exec(block, notebook)
    np.testing.assert_allclose(notebook["table"]["confidence"].fillna(0), pd.to_numeric(table["confidence"]).fillna(0))
    assert notebook["probabilities"].shape == (20, 3) and len(notebook["recovered"]["table"]) == 19
    assert (clinic / "row.png").stat().st_size > 5000


def test_the_estimator_works_as_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = python_blocks("A scikit-learn estimator")
    assert first.count("max_epochs=20") == second.count("max_epochs=20") == 1
    short = 'max_epochs=6, overrides=["imputer.training.max_epochs=2"]'
    notebook: dict[str, Any] = {}
    exec(first.replace("max_epochs=20", short), notebook)
    model, x, digit = notebook["model"], notebook["X"], notebook["digit"]
    assert (
        model.score({"upper": x["upper"][300:], "lower": x["lower"][300:]}, digit[300:]) > 0.6
    )  # six of twenty epochs
    assert notebook["probabilities"].shape == (5, 10) and (tmp_path / "digit.png").stat().st_size > 5000
    assert load(tmp_path / "digits.zip").class_names == [str(number) for number in range(10)]
    exec(second.replace("max_epochs=20", "max_epochs=1").replace("cv=3", "cv=2"), notebook)
    assert notebook["search"].best_params_["overrides"] in notebook["grid"]["overrides"]
