"""Bundles and predictions: equal to those of the run, in any folder and process; bad bundles and input are refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from scipy.special import softmax

from tests.contracts.test_imputers import SMALL as SMALL_IMPUTERS
from tests.makers import make_image_table
from trainers import run as pipeline
from trainers.bundle import MANIFEST, MODEL, open_bundle, push
from trainers.config.compose import CONFIGS, compose_config
from trainers.export import export
from trainers.loading import Run
from trainers.predictor import load
from utils.checksums import digest
from utils.errors import UserError

TABLE = {"_target_": "models.encoders.table.TableEncoder", "width": 16, "blocks": 1, "heads": 2}
IMAGE = {"_target_": "models.encoders.convolutional.PolyMNISTEncoder", "width": 16}
CLASSES = ["nut", "bolt", "screw"]
SETTINGS: dict[str, Any] = {
    "name": "Parts",
    "image": "photo",
    "image_suffix": ".jpg",
    "label": "kind",
    "classes": CLASSES,
    "categorical": {"metal": {"brass": ["brass", "Brass"], "steel": ["steel"]}, "finish": None},
    "continuous": ["weight", "length"],
    "missing_values": ["unknown"],
    "side": 28,
    "stored_side": 28,
    "augmentation": None,
    "encoders": {"image": IMAGE, "table": TABLE},
}
SMALL = [
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "imputer.quality.judge_epochs=1",
    "missing.test=[none,whole_1]",
]
DYMO = [
    "model=DyMo",
    "imputer=TIP",
    "imputer.training.max_epochs=1",
    *SMALL_IMPUTERS["TIP"],
    "model.backbone.module.width=16",
    "model.backbone.module.heads=2",
    "model.backbone.module.projection=8",
    "model.backbone.module.prototype_start=1",
    "model.backbone.training.max_epochs=1",
    "distance_metric=squared_euclidean",
]


def parts_config(folder: Path, *overrides: str, **settings: Any) -> DictConfig:
    """The shipped configuration on the table of :func:`make_image_table`, with small encoders."""
    paths = [f"paths.cache={folder / 'cache'}", f"paths.output={folder / 'out'}"]
    cfg = compose_config("dataset=ImageTable", *paths, *SMALL, *overrides)
    OmegaConf.set_struct(cfg, False)
    csv = folder / "parts" / "parts.csv"
    values = {**SETTINGS, "csv": str(csv), "images": str(csv.parent / "photos"), **settings}
    for key, value in values.items():
        cfg.dataset[key] = value
    if "image_encoder" in cfg.imputer:
        cfg.imputer.image_encoder = IMAGE
    OmegaConf.set_struct(cfg, True)
    return cfg


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """DyMo with TIP on image and table, exported; the raw data and the packed store are gone."""
    folder = tmp_path_factory.mktemp("run")
    csv = make_image_table(folder / "parts")
    cfg = parts_config(folder, *DYMO, "stages=[prepare,impute,fit,gaussian,test,export]")
    pipeline.run(cfg)
    run = Run(cfg)
    names = run.data.split("test").names()
    stored = dict(np.load(run.directory / "predictions" / "none.npz"))
    moved = tmp_path_factory.mktemp("elsewhere") / "colleague"
    shutil.move(run.directory / "bundle", moved)
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False).set_index("photo").loc[names].reset_index()
    photos = tmp_path_factory.mktemp("photos")
    for name in names:
        shutil.copy(csv.parent / "photos" / f"{name}.jpg", photos / f"{name}.jpg")
    return SimpleNamespace(
        bundle=moved, names=names, stored=stored, frame=frame, photos=photos, archive=run.directory / "bundle.zip",
        run=run,
    )  # fmt: skip


def test_predictions_of_a_bundle_are_those_of_the_run(parts: SimpleNamespace) -> None:
    predictor = load(parts.bundle)
    expected = softmax(parts.stored["logits"].astype(np.float64), axis=1)
    table = predictor.predict(parts.frame.drop(columns="kind"), images=parts.photos)
    np.testing.assert_allclose(table[[f"probability_{c}" for c in CLASSES]], expected, atol=1e-6)
    assert table["id"].tolist() == parts.names
    assert table["prediction"].tolist() == [CLASSES[i] for i in expected.argmax(1)]
    empty = parts.frame[["metal", "finish", "weight", "length"]].replace("unknown", "") == ""
    listed = [";".join(c for c in empty.columns if row[c]) for _, row in empty.iterrows()]
    assert table["missing_cells"].tolist() == listed and (table["missing"] == "").all()
    # The confidence is that of the predicted class at the temperature of complete rows.
    temperatures = predictor.temperatures
    assert temperatures is not None
    cooled = softmax(parts.stored["logits"].astype(np.float64) / temperatures.of(np.zeros((1, 2), bool))[0], axis=1)
    np.testing.assert_allclose(table["confidence"].astype(float), cooled.max(1), atol=1e-6)


def test_other_columns_order_spelling_and_types_change_nothing(parts: SimpleNamespace) -> None:
    predictor = load(parts.bundle)
    expected = predictor.predict_proba(parts.frame, images=parts.photos)
    other = parts.frame[parts.frame.columns[::-1]].assign(remark="x")
    other["metal"] = other["metal"].replace("brass", "Brass")
    other = other.rename(columns={"weight": " weight "})
    np.testing.assert_allclose(predictor.predict_proba(other, images=parts.photos), expected, atol=1e-6)
    typed = parts.frame.assign(
        weight=pd.to_numeric(parts.frame["weight"]), length=pd.to_numeric(parts.frame["length"]),
        finish=parts.frame["finish"].replace("", None),
    )  # fmt: skip
    np.testing.assert_allclose(predictor.predict_proba(typed, images=parts.photos), expected, atol=1e-6)
    shuffled = parts.frame.iloc[::-1]
    np.testing.assert_allclose(predictor.predict_proba(shuffled, images=parts.photos), expected[::-1], atol=1e-6)


def test_rows_that_lack_modalities_are_those_of_the_scenario(parts: SimpleNamespace) -> None:
    """A table without any cell is a missing table: as ``whole_1`` of the test stage."""
    stored = dict(np.load(parts.run.directory / "predictions" / "whole_1.npz"))
    bare = parts.frame.assign(metal="", finish="unknown", weight="", length="")
    table = load(parts.bundle).predict(bare, images=parts.photos)
    expected = softmax(stored["logits"].astype(np.float64), axis=1)
    np.testing.assert_allclose(table[[f"probability_{c}" for c in CLASSES]], expected, atol=1e-6)
    assert (table["missing"] == "table").all()
    accepted = ["table" if (row >= 0).any() else "" for row in stored["accepted"]]
    assert table["accepted"].tolist() == accepted
    assert table["rejected"].tolist() == ["" if name else "table" for name in accepted]
    # One image is lost, one row has nothing left.
    lost = parts.frame.copy()
    lost.loc[0, "photo"], lost.loc[1, "photo"] = "", "not_there"
    lost.loc[1, ["metal", "finish", "weight", "length"]] = ""
    table = load(parts.bundle).predict(lost, images=parts.photos)
    assert table["missing"].tolist()[:3] == ["image", "image;table", ""]
    assert table["id"].tolist()[:2] == ["0", "not_there"] and pd.isna(table["prediction"][1])
    assert table["prediction"].notna().sum() == len(table) - 1


def test_another_process_predicts_the_same_from_the_archive(parts: SimpleNamespace, tmp_path: Path) -> None:
    rows = tmp_path / "new.csv"
    parts.frame.drop(columns="kind").to_csv(rows, index=False)
    archive = tmp_path / "model.zip"
    shutil.copy(parts.archive, archive)
    arguments = [
        "stages=[predict]",
        f"predict.bundle={archive}",
        f"predict.input={rows}",
        f"predict.images={parts.photos}",
        f"predict.output={tmp_path / 'out.csv'}",
        "predict.chunk=7",
    ]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # The command line after the Python interface, in one process, which takes seconds to start.
    script = f"""
import runpy, sys
from trainers.predictor import load
load({str(archive)!r}).predict({str(rows)!r}, {str(parts.photos)!r}).to_csv({str(tmp_path / "api.csv")!r}, index=False)
sys.argv = ["run.py", *{arguments!r}]
runpy.run_path({str(CONFIGS.parent / "run.py")!r}, run_name="__main__")
"""
    variables = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(CONFIGS.parent)}
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True, timeout=300, env=variables
    )
    assert not list(temporary.glob("bundle-*")), "the unpacked archives are removed"
    table = pd.read_csv(tmp_path / "out.csv")
    expected = load(parts.bundle).predict_proba(parts.frame, images=parts.photos)
    np.testing.assert_allclose(table[[f"probability_{c}" for c in CLASSES]], expected, atol=1e-6)
    assert not list(tmp_path.glob(".out*"))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "api.csv"), table)


def predict_config(bundle: Path, **settings: Any) -> DictConfig:
    overrides = [f"predict.{key}={value}" for key, value in settings.items()]
    return compose_config("stages=[predict]", f"predict.bundle={bundle}", *overrides)


def test_an_interrupted_prediction_goes_on(parts: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    rows, output = tmp_path / "new.csv", tmp_path / "out.csv"
    parts.frame.to_csv(rows, index=False)
    cfg = predict_config(parts.bundle, input=rows, images=parts.photos, output=output, chunk=4)
    from trainers.predictor import Predictor

    table, calls = Predictor.table, []

    def stops(self: Predictor, new: Any) -> pd.DataFrame:
        calls.append(len(new))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return table(self, new)

    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "table", stops)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(cfg)
    assert not output.exists()
    calls.clear()
    with monkeypatch.context() as patched:
        patched.setattr(Predictor, "table", lambda self, new: (calls.append(len(new)), table(self, new))[1])
        pipeline.run(cfg)
    assert sum(calls) == len(parts.frame) - 8
    whole = load(parts.bundle).predict(parts.frame, images=parts.photos)
    actual = pd.read_csv(output)
    np.testing.assert_allclose(actual["probability_nut"], whole["probability_nut"].astype(float), atol=1e-6)
    assert actual["label"].tolist() == parts.frame["kind"].tolist()
    # The labels that the table has give scores.
    scores = pd.read_csv(tmp_path / "out.scores.csv").set_index("metric")["value"]
    assert scores["accuracy"] == pytest.approx((actual["prediction"] == actual["label"]).mean())


def test_recoveries_are_written_in_the_units_of_the_table(parts: SimpleNamespace, tmp_path: Path) -> None:
    rows = tmp_path / "new.csv"
    parts.frame.assign(metal="", finish="", weight="", length="").to_csv(rows, index=False)
    cfg = predict_config(
        parts.bundle, input=rows, images=parts.photos, output=tmp_path / "out.csv", recovered=tmp_path / "recovered"
    )
    pipeline.run(cfg)
    pipeline.run(cfg)  # replaces, and does not append
    table = pd.read_csv(tmp_path / "recovered" / "table" / "recovered.csv", dtype={"id": str})
    assert table["id"].tolist() == parts.names
    assert set(table["metal"]) <= {"brass", "steel"} and table["length"].between(0, 60).all()


def drawn(figure: Figure) -> list[list[str]]:
    """Texts of the figure: those outside of cells, then those of each cell."""
    return [[text.get_text() for text in part.texts] for part in (figure, *figure.axes)]


def test_the_picture_of_a_row_shows_what_is_observed_recovered_and_accepted(parts: SimpleNamespace) -> None:
    predictor = load(parts.bundle)
    rows = parts.frame.copy()
    rows.loc[0, ["metal", "finish", "weight", "length"]] = ["", "plain", "", "17.5"]
    rows.loc[1, ["metal", "finish", "weight", "length"]] = ""
    rows.loc[2, "photo"] = ""
    table, recovered = predictor.predict(rows, images=parts.photos), predictor.recover(rows, images=parts.photos)
    cells = predictor.cells_of(recovered["table"][:2], predictor.data.modalities[1])

    around, image, observed, probabilities, filled = drawn(predictor.explain(rows, parts.photos))
    assert {f"DyMo_EU on Parts: row {table['id'][0]}", "image", "table – 2 of 4 missing"} <= set(around)
    verdict = f"true: {rows['kind'][0]}    predicted: {table['prediction'][0]}"
    assert f"{verdict}    calibrated confidence: {table['confidence'][0]:.3f}" in around
    assert ("accepted (1)" in around) == (table["accepted"][0] == "table") != ("rejected" in around)
    assert image == [] and observed == ["metal", "–", "finish", "plain", "weight", "–", "length", "17.5"]
    metal, weight = cells["metal"][0], f"{cells['weight'][0]:.4g}"
    assert filled == ["metal", metal, "finish", "plain", "weight", weight, "length", "17.5"]
    values = {c: f"{table[f'probability_{c}'][0]:.3f}" for c in CLASSES}
    assert dict(zip(probabilities[::2], probabilities[1::2])) == values

    figure = predictor.explain(rows, parts.photos, number=1)
    around, image, observed, probabilities, filled = drawn(figure)
    assert observed == ["missing"] and filled[1::2][:2] == cells.iloc[1, :2].tolist()
    assert all(text.get_weight() == "bold" for text in figure.axes[3].texts[1::2]), "all of it is recovered"
    rewards = [text for text in around if re.fullmatch(r"[+-].*\d", text)]
    assert len(rewards) == 1, "one modality was missing"
    if table["accepted"][1]:
        assert float(rewards[0]) == pytest.approx(float(table["rewards"][1]), abs=5e-4)

    around, image, *_, left = drawn(predictor.explain(rows, parts.photos, number=2))
    assert image == ["missing"] and left == ["cannot be\nrecovered"], "TIP recovers tables only"
    rows.loc[3, ["photo", "metal", "finish", "weight", "length"]] = ""
    with pytest.raises(UserError, match="row 3: nothing of it is observed"):
        predictor.explain(rows, parts.photos, number=3)
    with pytest.raises(UserError, match="number=99: there are"):
        predictor.explain(rows, parts.photos, number=99)


def test_without_selection_the_picture_shows_what_is_there(parts: SimpleNamespace) -> None:
    """The backbone alone, and behind the imputer."""
    folder, frame = parts.run.cfg.paths.output, parts.frame.assign(metal="", finish="", weight="", length="")
    overrides = [o.replace("model.backbone.", "model.") for o in DYMO if o != "model=DyMo"]
    cfg = parts_config(Path(folder).parent, "model=DynamicTransformer", *overrides)
    around, *cells = drawn(load(Run(cfg)).explain(frame, parts.photos))
    assert "table – missing" in around and "recovered" not in around and len(cells) == 3


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def copied(parts: SimpleNamespace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts.bundle, tmp_path / "bundle"))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file and its checksum, as someone who means harm would."""
    from datasets.source import file_digest

    (bundle / name).write_bytes(content)
    about = json.loads((bundle / MANIFEST).read_text())
    about["files"][name] = file_digest(bundle / name)
    write_manifest(bundle, about)


def write_manifest(bundle: Path, about: dict[str, Any]) -> None:
    """Replace the manifest, with a checksum that fits."""
    content = {key: value for key, value in about.items() if key != "checksum"}
    (bundle / MANIFEST).write_text(json.dumps({**content, "checksum": digest(content)}))


def test_the_manifest_has_a_checksum(copied: Path) -> None:
    about = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(about | {"seed": 1}))
    with pytest.raises(UserError, match=r"bundle\.json is damaged \(its checksum differs\)"):
        open_bundle(copied)
    del about["checksum"]  # as in bundles of earlier versions
    (copied / MANIFEST).write_text(json.dumps(about))
    assert open_bundle(copied).about["seed"] == about["seed"]


def test_a_changed_weight_file_is_refused(copied: Path) -> None:
    content = bytearray((copied / MODEL).read_bytes())
    content[-1] ^= 1
    (copied / MODEL).write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model.safetensors is not the file that was exported \(its SHA-256 differs\)"):
        open_bundle(copied)


def test_a_pickle_is_refused_wherever_it_is(copied: Path, capsys: Any) -> None:
    torch.save(Hostile(), copied / "weights" / "extra.pt")
    with pytest.raises(UserError, match=r"holds weights/extra.pt, and no bundle has such files"):
        open_bundle(copied)
    (copied / "weights" / "extra.pt").unlink()
    torch.save({"state_dict": Hostile()}, copied / "pickle")
    rewrite(copied, MODEL, (copied / "pickle").read_bytes())
    with pytest.raises(UserError, match=r"model.safetensors is cut off or damaged"):
        load(copied)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "target", ["os.system", "models.base.torch.load", "datasets.base.json.loads", "models.nothing.X"]
)
def test_foreign_code_in_the_configuration_is_refused(copied: Path, target: str) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["imputer"]["module"]["_target_"] = target
    rewrite(copied, "config.yaml", yaml.safe_dump(config).encode())
    with pytest.raises(UserError, match=rf"config.yaml would run {target}: a bundle may name classes of models"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname"])
def test_a_path_outside_the_folder_is_refused(copied: Path, name: str) -> None:
    about = json.loads((copied / MANIFEST).read_text())
    about["files"][name] = "0"
    write_manifest(copied, about)
    with pytest.raises(UserError, match="which is outside of it"):
        open_bundle(copied)


def test_an_entry_without_a_name_is_refused(tmp_path: Path) -> None:
    """``zipfile`` itself ends with an IndexError."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("name", "x")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"name", bytes(4)))
    with pytest.raises(UserError, match=r"a\.zip holds an entry without a name"):
        open_bundle(tmp_path / "a.zip")


def test_an_archive_that_leaves_its_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../outside.txt", "x")
    with pytest.raises(UserError, match="which leaves its folder"):
        open_bundle(archive)
    assert not (tmp_path.parent / "outside.txt").exists()
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UserError, match=r"text.zip is no bundle"):
        open_bundle(tmp_path / "text.zip")


def test_an_archive_that_holds_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "large.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("weights", bytes(100_000))
        file.writestr("more", bytes(1))
    monkeypatch.setenv("DYMO_MAX_UNPACKED", "100000")
    with pytest.raises(UserError, match=r"holds 100,001 bytes when unpacked, the limit is 100,000; the environment"):
        open_bundle(archive)


def test_a_folder_that_is_no_bundle_or_lacks_a_file_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no bundle"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"it has no bundle\.json"):
        open_bundle(tmp_path / "empty")
    (copied / "data" / "meta.json").unlink()
    with pytest.raises(UserError, match=r"lacks data/meta\.json"):
        open_bundle(copied)


class Hub:
    """Stands for the hub: repositories are folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, []  # type: ignore[var-annotated]

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
        self.made.append((name, private))

    def upload_folder(self, repo_id: str, folder_path: str) -> str:
        shutil.copytree(folder_path, self.root / repo_id)
        return f"hub/{repo_id}/commit"

    def snapshot_download(self, name: str) -> str:
        if not (self.root / name).is_dir():
            raise FileNotFoundError("404 Client Error")
        return str(self.root / name)


def test_a_bundle_goes_to_the_hub_and_comes_back(
    parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    assert push(parts.bundle, "user/parts") == "hub/user/parts/commit" and hub.made == [("user/parts", True)]
    expected = load(parts.bundle).predict_proba(parts.frame, images=parts.photos)
    np.testing.assert_array_equal(load("user/parts").predict_proba(parts.frame, images=parts.photos), expected)
    with pytest.raises(UserError, match=r"there is no folder user/other, .* hub \(404 Client Error\)"):
        load("user/other")
    (tmp_path / "user" / "parts" / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"config.yaml is not the file that was exported"):
        load("user/parts")


MISTAKES: dict[str, tuple[Any, str]] = {
    "column misspelled": (
        lambda f: f.rename(columns={"weight": "wieght"}),
        r"no column 'weight' \(did you mean 'wieght'\?",
    ),
    "column absent": (lambda f: f.drop(columns="metal"), r"there is no column 'metal'.*: add it"),
    "image column absent": (lambda f: f.drop(columns="photo"), r"there is no column 'photo'"),
    "unseen level": (lambda f: f.assign(metal="gold"), r"'metal' are none of its levels brass, steel: 'gold'"),
    "level in another case": (lambda f: f.assign(finish="ZINC"), r"column 'finish' are none of its levels"),
    "text in numbers": (lambda f: f.assign(weight="heavy"), r"cells in column 'weight' are no numbers, 'heavy'"),
    "unit in numbers": (lambda f: f.assign(weight="5 kg"), r"cells in column 'weight' are no numbers, '5 kg'"),
    "decimal comma": (lambda f: f.assign(length="20,5"), r"cells in column 'length' are no numbers, '20,5'"),
    "infinite": (lambda f: f.assign(length="inf"), r"cells in column 'length' are no numbers, 'inf'"),
    "no image there": (lambda f: f.assign(photo=f["photo"] + "_x"), r"no image is in .*: set predict.images"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_new_rows_are_named_with_the_fix(parts: SimpleNamespace, mistake: str) -> None:
    change, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        load(parts.bundle).predict(change(parts.frame), images=parts.photos)
    assert len(str(caught.value).splitlines()) == 1


def test_all_mistakes_are_named_at_once_or_count_as_missing(parts: SimpleNamespace, tmp_path: Path) -> None:
    bad = parts.frame.drop(columns="finish").assign(metal="gold", weight="heavy")
    with pytest.raises(UserError) as caught:
        load(parts.bundle).predict(bad, images=parts.photos)
    assert len(str(caught.value).splitlines()) == 3
    rows = load(parts.bundle, unknown="missing").read(bad, images=parts.photos)
    assert rows.arrays["table_missing"][:, :3].all() and len(rows.remarks) == 3
    known = load(parts.bundle).read(parts.frame.assign(metal="", finish="", weight=""), images=parts.photos)
    np.testing.assert_array_equal(rows.arrays["table_missing"], known.arrays["table_missing"])


OPTIONS = {
    "input": ({"input": "null"}, r"predict.input=null: give the .csv or .npz"),
    "input absent": ({"input": "nowhere.csv"}, r"predict.input=nowhere.csv: there is no such file"),
    "output": ({"output": "out.txt"}, r"predict.output=out.txt: must be the name of a .csv file"),
    "images": ({"images": "nowhere"}, r"predict.images=nowhere: there is no such folder"),
    "unknown": ({"unknown": "guess"}, r"predict.unknown=guess: must be one of refuse, missing"),
    "chunk": ({"chunk": "0"}, r"predict.chunk=0: must be a whole number of at least 1"),
    "chunk text": ({"chunk": "many"}, r"predict.chunk=many: must be a whole number"),
    "id": ({"id": "number"}, r"there is no column 'number': correct dataset.id or predict.id"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_mistakes_in_options_are_named_with_the_fix(parts: SimpleNamespace, option: str, tmp_path: Path) -> None:
    settings, message = OPTIONS[option]
    rows = tmp_path / "new.csv"
    parts.frame.to_csv(rows, index=False)
    given = {"input": rows, "images": parts.photos, "output": tmp_path / "out.csv", **settings}
    with pytest.raises(UserError, match=message):
        pipeline.run(predict_config(parts.bundle, **given))
    assert not (tmp_path / "out.csv").exists()


def test_files_that_are_no_rows_are_refused(parts: SimpleNamespace, tmp_path: Path) -> None:
    predictor = load(parts.bundle)
    (tmp_path / "empty.csv").write_text("photo,metal,finish,weight,length\n")
    with pytest.raises(UserError, match="has a header and no rows"):
        predictor.predict(tmp_path / "empty.csv")
    (tmp_path / "other.csv").write_text("photo;metal\np0;brass\n")
    with pytest.raises(UserError, match=r"has one column, 'photo;metal': its cells must be separated by ','"):
        predictor.predict(tmp_path / "other.csv")
    with pytest.raises(UserError, match="an array 'picture': known are image, table"):
        predictor.predict({"picture": np.zeros((2, 3))})
    with pytest.raises(UserError, match=r"'table' has rows of shape \(3,\), the model takes \(4,\)"):
        predictor.predict({"table": np.zeros((2, 3))})
    with pytest.raises(UserError, match=r"arrays of 2 rows \(image\), 3 rows \(table\)"):
        predictor.predict({"image": np.zeros((2, 3, 28, 28), np.uint8), "table": np.zeros((3, 4))})
    np.savez(tmp_path / "objects.npz", image=np.array([Hostile()], dtype=object))
    with pytest.raises(UserError, match=r"objects.npz cannot be read as .npz"):
        predictor.predict(tmp_path / "objects.npz")


def test_a_threshold_from_validation_data_predicts_in_runs_and_bundles_alike(
    parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = parts.run.cfg.copy()
    cfg.model.selection.threshold = "auto"
    cfg.export.folder = str(tmp_path / "bundle")

    def chosen(run: Run, method: Any, is_written: bool) -> list[pd.DataFrame]:
        method.rule.threshold = 0.25
        return []

    monkeypatch.setattr("trainers.evaluate.calibrate", chosen)
    export(Run(cfg))
    monkeypatch.undo()
    assert load(tmp_path / "bundle").method.rule.threshold == 0.25  # type: ignore[union-attr]
    monkeypatch.setattr("trainers.evaluate.calibrate", chosen)
    assert load(Run(cfg)).method.rule.threshold == 0.25  # type: ignore[union-attr]
