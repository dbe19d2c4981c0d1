"""Any mix of modalities from one CSV file: packing against independent reading, gaps, refusals, new rows, stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from datasets.from_csv import FromCSV
from datasets.modality_parts.arrays import plots_of
from tests.mixed import CLASSES, LACKING, MODALITIES, arguments, as_override, make_mixed
from trainers import run as pipeline
from trainers.config.compose import compose_config
from trainers.config.validate import validate
from trainers.loading import Run
from trainers.predictor import load
from utils.errors import UserError


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixed(tmp_path_factory.mktemp("mixed"))


@pytest.fixture
def make(tmp_path: Path, csv: Path) -> Callable[..., FromCSV]:
    def build(*names: str, **changes: Any) -> FromCSV:
        return FromCSV(store=str(tmp_path / "store"), **arguments(csv, *names, **changes))

    return build


def with_option(name: str, **options: Any) -> dict[str, Any]:
    """All modalities, one of them with other options."""
    return {**MODALITIES, name: {**MODALITIES[name], **options}}


def packed_rows(data: FromCSV) -> dict[str, tuple[str, int]]:
    """Identifier -> split and row in it."""
    return {name: (split, i) for split in ("train", "val", "test") for i, name in enumerate(data.split(split).names())}


def is_absent(data: FromCSV, name: str, split: str, row: int) -> bool:
    absent = data.natural_rows(split).get(name)
    return absent is not None and bool(absent[row])


def test_every_row_is_packed_as_its_files_and_cells_say(make: Callable[..., FromCSV], csv: Path) -> None:
    data = make()
    data.prepare()
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False).set_index("id")
    places = packed_rows(data)
    assert sorted(places) == sorted(frame.index)
    assert data.kinds == {
        **{"film": "image", "lateral": "image", "labs": "table", "note": "text"},
        **{"heart": "audio", "ecg": "series", "genes": "table", "clip": "video"},
    }
    shapes = {m.name: m.shape for m in data.modalities}
    assert shapes == {
        **{"film": (3, 16, 16), "lateral": (1, 16, 16), "labs": (3,), "note": (10,)},
        **{"heart": (32, 16), "ecg": (24, 2), "genes": (5,), "clip": (2, 3, 16, 16)},
    }
    vocabulary = (csv.parent / "vocab.txt").read_text().splitlines()
    for name, cells in frame.iterrows():
        split, i = places[str(name)]
        stored = data.split(split)
        assert CLASSES[int(stored.read("target")[i])] == cells["state"]
        for image, side in (("film", 20), ("lateral", 16)):
            assert is_absent(data, image, split, i) == (cells[image] == "")
            if cells[image]:
                picture = Image.open(csv.parent / "images" / f"{cells[image]}.png")
                expected = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))
                got = stored.read(image)[i].numpy().transpose(1, 2, 0)
                np.testing.assert_array_equal(got.squeeze(), expected)
        gaps = data.natural_cells(split)["labs"][i]
        assert gaps.tolist() == [cells["sex"] == "", cells["age"] == "", cells["crp"] == ""]
        if cells["note"]:
            words = [vocabulary[int(token)] for token in stored.read("note")[i] if token]
            assert words == ["[CLS]", *cells["note"].split(), "[SEP]"]
        else:
            assert data.natural_rows(split)["note"][i]


def test_arrays_sounds_and_clips_are_packed_as_their_files_say(make: Callable[..., FromCSV], csv: Path) -> None:
    data = make("ecg", "genes", "heart", "clip")
    data.prepare()
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False).set_index("id")
    places = packed_rows(data)
    train = [name for name, (split, _) in places.items() if split == "train"]
    series = {name: np.load(csv.parent / "arrays" / f"{row.ecg}.npy")[:24] for name, row in frame.iterrows() if row.ecg}
    vectors = {
        name: np.load(csv.parent / "arrays" / f"{row.genes}.npz")["arr_0"]
        for name, row in frame.iterrows()
        if row.genes
    }
    known = np.concatenate([series[name] for name in train if name in series])
    mean, deviation = np.nanmean(known, 0), np.nanstd(known, 0)
    known = np.stack([vectors[name] for name in train if name in vectors])
    zero, unit = np.nanmean(known, 0), np.nanstd(known, 0)
    unit[4] = 1  # a constant feature
    for split in ("train", "val", "test"):
        rows = data.split(split)
        batch = data.rows(split, np.arange(len(rows)))
        cells = data.natural_cells(split)
        for i, name in enumerate(rows.names()):
            for modality in ("ecg", "genes", "heart", "clip"):
                assert is_absent(data, modality, split, i) == (frame.loc[name, modality] == "")
            if name in series:
                expected = np.full((24, 2), np.nan)
                expected[: len(series[name])] = (series[name] - mean) / deviation
                np.testing.assert_array_equal(cells["ecg"][i], np.isnan(expected))
                got = np.where(cells["ecg"][i], np.nan, batch.inputs["ecg"][i].numpy())
                np.testing.assert_allclose(got, expected, atol=1e-5)
            if name in vectors:
                np.testing.assert_array_equal(cells["genes"][i], np.isnan(vectors[name]))
                got = np.where(cells["genes"][i], np.nan, batch.inputs["genes"][i].numpy())
                np.testing.assert_allclose(got, (vectors[name] - zero) / unit, atol=1e-5)
            if frame.loc[name, "heart"]:  # the tone of the class is the loudest mel bin
                loudest = int(batch.inputs["heart"][i].mean(0).argmax())
                assert (loudest < 5) == (frame.loc[name, "state"] == "ill")
            if frame.loc[name, "clip"]:
                pixels = data.pixels("clip", batch.inputs["clip"][i : i + 1])[0]
                folder = csv.parent / "clips" / frame.loc[name, "clip"]
                count = len(list(folder.iterdir()))
                for place, shown in zip([int((t + 0.5) * count / 2) for t in range(2)], pixels):
                    expected = Image.open(folder / f"{place}.png").resize((16, 16), Image.Resampling.BILINEAR)
                    got = (shown.permute(1, 2, 0) * 255).round().numpy()
                    np.testing.assert_allclose(got, np.asarray(expected), atol=1)
    heard = [i for i in range(len(data.split("train"))) if not is_absent(data, "heart", "train", i)]
    sound = data.rows("train", np.array(heard)).inputs["heart"].numpy()
    assert abs(sound.mean()) < 1e-4 and abs(sound.std() - 1) < 1e-4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ecg", np.zeros((4, 3)), r"shape \(4, 3\), expected \(time steps, 2\)"),
        ("ecg", np.full((4, 2), np.nan), "no number in it"),
        ("ecg", np.full((4, 2), np.inf), "infinite numbers"),
    ],
)
def test_series_that_do_not_fit_are_named(
    make: Callable[..., FromCSV], csv: Path, name: str, content: np.ndarray, message: str
) -> None:
    file = csv.parent / "arrays" / f"{name}20.npy"
    original = file.read_bytes()
    try:
        np.save(file, content)
        with pytest.raises(UserError, match=message):
            make(name).prepare()
    finally:
        file.write_bytes(original)


def test_normalisation_is_that_of_the_observed_training_rows(make: Callable[..., FromCSV]) -> None:
    data = make()
    data.prepare()
    train = data.split("train")
    observed = ~data.natural_rows("train").get("film", np.zeros(len(train), dtype=bool))
    pixels = train.read("film").numpy()[observed].astype(np.float64) / 255
    mean, deviation = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    np.testing.assert_allclose(data.about(data.parts[0])["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(data.about(data.parts[0])["deviation"], deviation, rtol=1e-6)
    batch = next(iter(data.loader("test")))
    stored = data.split("test").read("lateral")[:1].float() / 255  # of its final size
    shown = data.pixels("lateral", batch.inputs["lateral"][:1])
    torch.testing.assert_close(shown, stored, atol=1e-6, rtol=1e-5)
    described = data.describe_inputs()["modalities"]
    assert described[0]["normalisation"]["mean"] == data.about(data.parts[0])["mean"]
    assert [column["name"] for column in described[2]["columns"]] == ["sex", "age", "crp"]


def test_files_that_cannot_be_read_are_refused_or_missing(make: Callable[..., FromCSV], csv: Path) -> None:
    film = csv.parent / "images" / "film20.png"
    content = film.read_bytes()
    try:
        film.write_bytes(b"no image")
        with pytest.raises(UserError, match=r"1 of 59 image files of 'film' cannot be read: .*film20.png .*=missing"):
            make().prepare()
        data = make(modalities=with_option("film", unreadable="missing"))
        data.prepare()
        film.unlink()
        again = make(modalities=with_option("film", unreadable="missing"))
        again.store = type(data.store)(data.store.folder.with_name("second"))
        again.prepare()
        for packed in (data, again):
            places = packed_rows(packed)
            absent = {name for name, place in places.items() if is_absent(packed, "film", *place)}
            assert absent == {f"r{i}" for i in (*LACKING["film"], 20)}
    finally:
        film.write_bytes(content)


def test_rows_without_any_content_are_left_out_and_counted(make: Callable[..., FromCSV]) -> None:
    data = make("lateral", "note")
    data.prepare()
    assert "r9" not in packed_rows(data) and data.packed_meta()["source"]["left_out"] == {"no content": 1}


@pytest.mark.parametrize("natural_missing", ["keep", "fill"])
def test_which_rows_are_packed_depends_on_no_setting_of_reading(
    make: Callable[..., FromCSV], natural_missing: str
) -> None:
    data = make(modalities={"labs": {**MODALITIES["labs"], "natural_missing": natural_missing}})
    data.prepare()
    assert "r7" not in packed_rows(data) and data.packed_meta()["source"]["left_out"] == {"no content": 1}


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({}, "dataset.modalities is empty"),
        ({"a": {"kind": "picture"}}, "dataset.modalities.a.kind=picture: must be one of image, "),
        ({"a": {"kind": "image"}}, "dataset.modalities.a: column is not given"),
        (
            {"a": {"kind": "image", "column": "f", "sides": 3}},
            r"a.sides: there is no such option \(did you mean 'side'",
        ),
        ({"a": {"kind": "image", "column": "f", "side": 0}}, "a.side=0: must be a whole number of 1 or more"),
        ({"a": {"kind": "image", "column": "f", "folder": "/x"}}, "a.folder=/x: name a folder below dataset.images"),
        ({"a": {"kind": "table"}}, "dataset.modalities.a.categorical and dataset.modalities.a.continuous are empty"),
        ({"a": {"kind": "text", "columns": []}}, "a.columns=.*name at least one column"),
        ({"a": {"kind": "table", "continuous": ["x"]}, "b": {"kind": "table", "continuous": ["x"]}}, "in 2 tables"),
        ({"a": {"kind": "table", "continuous": ["state"]}}, "column 'state' is a label and an input"),
        ({"a b": {"kind": "table", "continuous": ["x"]}}, "letters, digits and _"),
    ],
)
def test_impossible_options_are_refused(make: Callable[..., FromCSV], modalities: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(modalities=modalities)


def test_all_problems_are_named_at_once(make: Callable[..., FromCSV]) -> None:
    bad = {"a": {"kind": "image", "column": "f", "side": 0, "fit": "fill"}, "b": {"kind": "table", "unseen": "x"}}
    with pytest.raises(UserError) as error:
        make(modalities=bad)
    assert [line.partition("=")[0] for line in str(error.value).splitlines()][:2] == [
        "dataset.modalities.a.side",
        "dataset.modalities.a.fit",
    ]
    assert "dataset.modalities.b" in str(error.value)


def test_reading_options_do_not_pack_again(make: Callable[..., FromCSV]) -> None:
    given = {"modalities": with_option("labs", natural_missing="fill")}
    assert FromCSV.packing_arguments(given) == FromCSV.packing_arguments({"modalities": MODALITIES})
    data = make()
    data.prepare()
    filled = make(**given)
    assert filled.find_source().signature == data.find_source().signature and "labs" not in filled.natural_cells(
        "train"
    )
    assert "labs" in data.natural_cells("train")


def test_new_rows_are_encoded_as_packed_rows_are(make: Callable[..., FromCSV], csv: Path) -> None:
    data = make()
    data.prepare()
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    rows = data.encode_rows(frame, csv.parent, "new", id_column="id")
    seen = rows.observed(data.modalities)
    for i, name in enumerate(rows.names):
        split, j = packed_rows(data)[name]
        stored = data.split(split)
        for m in data.modalities:
            absent = is_absent(data, m.name, split, j)
            assert absent == (not seen[i, data.modality_names.index(m.name)])
            if absent:
                continue
            gaps = data.natural_cells(split).get(m.name)
            observed = ~gaps[j] if gaps is not None else ...
            if gaps is not None:
                np.testing.assert_array_equal(rows.arrays[f"{m.name}_missing"][i], gaps[j])
            expected = stored.read(m.name)[j].numpy()[observed]
            np.testing.assert_allclose(rows.arrays[m.name][i][observed], expected, rtol=1e-6)
        counts = stored.counts("clip")
        if not is_absent(data, "clip", split, j):
            assert counts is not None and rows.arrays["clip.counts"][i] == counts[j]
        assert rows.target is not None and rows.target[i] == stored.read("target")[j]


@pytest.fixture(scope="module")
def run_of(csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Configurations of small runs on some modalities."""
    folder = tmp_path_factory.mktemp("runs")

    def overrides(*more: str, names: tuple[str, ...] = (), **changes: Any) -> Any:
        given = arguments(csv, *names, **changes)
        settings = [f"++dataset.{key}={as_override(value)}" for key, value in given.items()]
        small = ["dataset.encoder_set=tiny", "trainer=cpu", "trainer.enable_progress_bar=false"]
        small += [f"dataset.training_defaults.{key}={n}" for key, n in (("max_epochs", 2), ("batch_size", 16))]
        small += ["dataset.training_defaults.width=16", "dataset.training_defaults.heads=2"]
        small += ["dataset.training_defaults.vector_width=16", f"paths.cache={folder / 'cache'}"]
        return compose_config("dataset=FromCSV", *settings, *small, f"paths.output={folder / 'out'}", *more)

    return overrides


@pytest.mark.usefixtures("undrawn")
def test_all_stages_run_on_all_kinds_at_once(run_of: Callable[..., Any], csv: Path) -> None:
    cfg = run_of("model=ModDrop", "stages=[prepare,fit,test,report,export]", "model.training.max_epochs=4")
    validate(cfg)
    pipeline.run(cfg)
    run = Run(cfg)
    results = pd.read_csv(run.directory / "results.csv").query("metric == 'accuracy'").set_index("scenario")["value"]
    assert list(results.index) == ["none", *(f"whole_{i}" for i in range(8))] and results.between(0, 1).all()
    predictor = load(run.directory / "bundle")
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    table = predictor.predict(frame, csv.parent)
    assert table["prediction"].isin(CLASSES).all() and table.loc[9, "missing"] == "lateral;note"
    ecg = np.load(csv.parent / "arrays" / "ecg0.npy")  # of 20 time steps
    share = (np.isnan(ecg).sum() + 2 * (24 - len(ecg))) / 48
    assert {"sex", "age", f"ecg {share:.0%}"} <= set(table.loc[0, "missing_cells"].split(";"))
    assert "parts" in yaml.safe_load((run.directory / "bundle" / "data" / "meta.json").read_text())
    assert str(csv.parent) not in (run.directory / "bundle" / "config.yaml").read_text()


def test_an_encoder_of_the_user_replaces_that_of_the_kind(run_of: Callable[..., Any]) -> None:
    cfg = run_of(
        "dataset.encoders={lateral:{_target_:models.encoders.convolutional.ConvolutionalEncoder,width:8}}",
        names=("film", "lateral"),
    )
    run = Run(cfg)
    run.data.prepare()
    from trainers.config.build import build_encoders

    encoders = build_encoders(cfg, run.data)
    assert (encoders["film"].width, encoders["lateral"].width) == (16, 8)
    assert [len(e(torch.zeros(2, c, 16, 16))) for e, c in zip(encoders.values(), (3, 1))] == [2, 2]


def test_no_modalities_is_one_problem(run_of: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"dataset\.modalities is empty"):
        validate(compose_config("dataset=FromCSV"))


def test_a_series_is_drawn_with_gaps_where_it_has_none() -> None:
    series = np.zeros((2, 11, 1))
    series[0, :, 0] = np.linspace(-4, 4, 11)
    series[1, 6:] = np.nan
    rising, broken = (picture.min(0) < 0.9 for picture in plots_of(series))  # (96, 160) bool, True = drawn
    assert rising.shape == (96, 160)
    heights = [int(rows.mean()) for column in (20, 80, 140) if len(rows := np.flatnonzero(rising[:, column]))]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 3
    assert abs(heights[1] - 48) <= 2
    assert broken[:, :75].any(0).all() and not broken[:, 85:].any()
