"""Mechanisms on data of one CSV file with every kind of modality, packed by the real readers, with gaps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from datasets.from_csv import FromCSV
from datasets.missingness import parse_scenario
from tests.mixed import MODALITIES, arguments, make_mixed

M = len(MODALITIES)
CONTENT_KINDS = [
    *(f"{kind}_{j}_0.5" for kind in ("mar", "mnar") for j in range(M)),
    *("mar_2-age_0.5", "mnar_2-sex_slope-2_0.5", "mnar_content_0.5", "mnar_class_0.5"),
]
OTHERS = [
    "rates_" + "_".join(str(round(0.1 * (j + 1), 1)) for j in range(M)),
    *("correlated_0.3_0.5", "correlated_015_0.9_0.5", "patterns_none-1_0123-1_4567-2", "patterns_like_train"),
    *("segments_2_0.5", "segments_5_0.5", "segments_6_0.5"),
]


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixed(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, csv: Path) -> FromCSV:
    data = FromCSV(store=str(tmp_path_factory.mktemp("store") / "packed"), **arguments(csv))
    data.prepare()
    return data


@pytest.mark.parametrize("name", [*CONTENT_KINDS, *OTHERS])
def test_masks_fit_every_kind_and_gaps_of_the_source_stay(data: FromCSV, name: str) -> None:
    scenario = parse_scenario(name)
    scenario.check(M, data.modality_names)
    for split in ("train", "val", "test"):
        gaps = data.source_gaps(split)
        missing, cells = data.masks(split, scenario)
        assert (missing >= gaps.absent).all()
        for table, natural in gaps.cells.items():
            assert (cells[table] >= natural).all()
        unobserved = missing.copy()
        for table, hidden in cells.items():
            unobserved[:, data.modality_names.index(table)] &= hidden.reshape(len(hidden), -1).all(1)
        assert not unobserved.all(1).any()
        if name.startswith("mar_"):  # the driver stays where the source has it
            (driver,) = scenario.named_modalities
            assert np.array_equal(unobserved[:, driver], gaps.unobservable()[:, driver])
    for batch in data.loader("train", scenario, train=True, batch_size=16):
        for column, (modality, shown) in enumerate(zip(data.modalities, batch.observed().values())):
            assert shown.isfinite().all() if shown.is_floating_point() else True, modality.name
            if modality.name not in batch.feature_missing:
                assert not shown[batch.missing[:, column]].any(), modality.name


def test_table_scenarios_act_on_the_table_of_columns_alone(data: FromCSV) -> None:
    scenario, plain = parse_scenario("table_value_0.4"), parse_scenario("none")
    missing, cells = data.masks("train", scenario)
    _, natural = data.masks("train", plain)
    assert data.tables == ["labs"] and {"labs", "ecg", "genes"} == cells.keys()
    assert np.array_equal(cells["ecg"], natural["ecg"]) and np.array_equal(cells["genes"], natural["genes"])
    n, columns = cells["labs"].shape
    drawn = np.zeros(n * columns, dtype=bool)
    drawn[np.random.RandomState(2021).choice(n * columns, int(n * columns * 0.4), replace=False)] = True
    assert np.array_equal(cells["labs"], drawn.reshape(n, columns) | natural["labs"])
    assert data.realised_rate(scenario, missing, cells) == cells["labs"].mean()


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory, csv: Path, data: FromCSV) -> FromCSV:
    """The same store with other content in place of what the source lacks."""
    folder, changes = tmp_path_factory.mktemp("changed") / "packed", 0
    shutil.copytree(data.store.folder, folder)
    for part in ("train", "val", "test"):
        gaps = data.source_gaps(part)
        for j, modality in enumerate(data.modalities):
            file = folder / part / f"{modality.name}.npy"
            array = np.load(file)
            junk = 77 if np.issubdtype(array.dtype, np.integer) else np.float32(1e30)
            pointers = folder / part / f"{modality.name}.rows.npy"  # images, sounds and clips share items
            items = np.load(pointers) if pointers.exists() else np.arange(len(array))
            array[np.setdiff1d(items[gaps.absent[:, j]], items[~gaps.absent[:, j]])] = junk
            if modality.name in gaps.cells:
                rows, *cells = np.nonzero(gaps.cells[modality.name])
                array[(items[rows], *cells)] = junk
            changes += int((array != np.load(file)).any())
            np.save(file, array)
    assert changes >= 4
    meta = json.loads((folder / "meta.json").read_text())
    meta.pop("files")  # checksums
    (folder / "meta.json").write_text(json.dumps(meta))
    return FromCSV(store=str(folder), **arguments(csv))


@pytest.mark.parametrize("name", CONTENT_KINDS)
def test_content_that_the_source_lacks_changes_no_mask(data: FromCSV, changed: FromCSV, name: str) -> None:
    for part in ("train", "val", "test"):
        scenario = parse_scenario(name)
        assert np.array_equal(data.masks(part, scenario)[0], changed.masks(part, scenario)[0])
