"""ImageTable and ImageText are presets of FromCSV: the same rows, arrays and augmented batches; older stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from datasets.base import MultimodalDataModule
from datasets.from_csv import FromCSV
from datasets.image_table import ImageTable
from datasets.image_text import ImageText
from datasets.modality_parts.options import build_parts
from tests.conftest import Reads
from tests.makers import make_chest_xray, make_image_table
from utils.errors import UserError

SPLITS = ("train", "val", "test")
AUGMENTATION = {"rate": 0.8, "blur_side": 20, "rotation": 10.0, "corruption": 0.4}
COLUMNS = {"categorical": {"metal": ["brass", "steel"], "finish": None}, "continuous": ["weight", "length"]}


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Any]:
    """Options of the rows of a table in which three rows have no photograph."""
    csv = make_image_table(tmp_path / "parts")
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    frame.loc[[3, 17], "photo"], frame.loc[9, "photo"] = "", "no_such_file"
    frame.to_csv(csv, index=False)
    names = {"name": "Parts", "label": "kind", "classes": ["nut", "bolt", "screw"], "missing_values": ["unknown"]}
    return {**names, "csv": str(csv), "images": str(csv.parent / "photos"), "fractions": [0.6, 0.2, 0.2]}


def preset(folder: Path, rows: dict[str, Any], **changes: Any) -> ImageTable:
    sizes = {"side": 16, "stored_side": 20, "image": "photo", "image_suffix": ".jpg"}
    return ImageTable(store=str(folder / "preset"), **{**rows, **COLUMNS, **sizes, **changes})


def composed(folder: Path, rows: dict[str, Any], policy: str, **changes: Any) -> FromCSV:
    image = {"kind": "image", "column": "photo", "suffix": ".jpg", "side": 16, "stored_side": 20}
    image |= {"normalisation": "none", "empty": policy, "absent": policy}
    modalities = {"image": image, "table": {"kind": "table", **COLUMNS}}
    return FromCSV(store=str(folder / "composed"), modalities=modalities, **{**rows, **changes})


def epochs(data: MultimodalDataModule) -> list[dict[str, torch.Tensor]]:
    """Inputs of the training batches of two epochs."""
    loader = data.loader("train", train=True, batch_size=16)
    batches = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        batches += [batch.inputs | {"index": batch.index, "missing": batch.missing} for batch in loader]
    return batches


@pytest.mark.parametrize(("policy", "changes"), [("missing", {"fold": 1, "folds": 3}), ("leave_out", {})])
def test_the_preset_has_the_rows_and_batches_of_the_composition(
    tmp_path: Path, rows: dict[str, Any], policy: str, changes: dict[str, Any]
) -> None:
    one = preset(tmp_path, rows, without_image=policy, augmentation=None, **changes)
    two = composed(tmp_path, rows, policy, augmentation=AUGMENTATION, **changes)
    one.augmentation = two.augmentation
    for data in (one, two):
        data.prepare()
    left_out = 3 if policy == "leave_out" else 0
    assert one.packed_meta()["counts"] == two.packed_meta()["counts"]
    assert sum(one.packed_meta()["counts"].values()) == 60 - left_out
    assert two.packed_meta()["source"]["left_out"].get("no image", 0) == left_out
    for split in SPLITS:
        for name in ("image", "table", "target"):
            assert torch.equal(one.split(split).read(name), two.split(split).read(name))
        absent = [data.natural_rows(split).get("image", np.zeros(1)).sum() for data in (one, two)]
        assert absent[0] == absent[1]
    for a, b in zip(epochs(one), epochs(two), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    changed = [b["table"] != two.split("train").read("table")[b["index"]] for b in epochs(two)]
    share = torch.cat(changed).float().mean()
    assert 0 < share < 0.8 * 0.25, "one of four columns, of 80 % of the rows, some drawn as they were"


def test_folds_share_decoded_files(tmp_path: Path, rows: dict[str, Any]) -> None:
    inodes = []
    for fold in (0, 1):
        data = composed(tmp_path / str(fold), rows, "missing", fold=fold, folds=2)
        data.store.folder = tmp_path / f"fold{fold}"
        data.prepare()
        inodes.append((data.store.folder / "test" / "image.npy").stat().st_ino)
    assert inodes[0] == inodes[1] and len(list(tmp_path.glob("Parts-image-*"))) == 1


def test_the_size_of_a_store_counts_shared_files_once(tmp_path: Path, rows: dict[str, Any]) -> None:
    sample = composed(tmp_path, rows, "missing").pack_sample(60)
    images = 57 * 3 * 20 * 20  # bytes; three rows have none
    assert sample is not None and images < sample.nbytes < 1.3 * images


def test_files_that_do_not_exist_have_an_option(tmp_path: Path, rows: dict[str, Any]) -> None:
    options = {"kind": "image", "column": "photo", "suffix": ".jpg", "side": 16}
    with pytest.raises(UserError, match=r"1 of 58 image files of 'image' .*or set dataset\.modalities\.image\.unread"):
        FromCSV(store=str(tmp_path / "s"), modalities={"image": {**options, "absent": "refuse"}}, **rows).prepare()
    data = FromCSV(store=str(tmp_path / "s"), modalities={"image": {**options, "empty": "leave_out"}}, **rows)
    with pytest.raises(UserError, match=r"1 of 58 image files"):
        data.prepare()
    with pytest.raises(UserError, match=r"modalities\.image\.absent=skip: must be missing, refuse or leave_out"):
        build_parts({"image": {**options, "absent": "skip"}}, None)
    joint = {"image": {**options, "augmentation": {"rate": 1.0}}}
    with pytest.raises(
        UserError, match=r"dataset\.augmentation and dataset\.modalities\.image\.augmentation are given"
    ):
        FromCSV(store=str(tmp_path / "s"), modalities=joint, augmentation=AUGMENTATION, **rows)
    with pytest.raises(UserError, match=r"dataset\.augmentation: .*rotations"):
        FromCSV(store=str(tmp_path / "s"), modalities={"image": options}, augmentation={"rotations": 1}, **rows)


def test_an_absent_class_is_refused_before_files_are_decoded(
    tmp_path: Path, rows: dict[str, Any], reads: Reads
) -> None:
    more = {**rows, "classes": ["nut", "bolt", "screw", "rivet"]}
    for data in (preset(tmp_path, more, without_image="missing"), composed(tmp_path, more, "missing")):
        with pytest.raises(UserError, match=r"no training row of 1 of 4 classes \(rivet\)"):
            data.prepare()
    assert reads.all() == []


def test_texts_of_the_preset_are_those_of_the_composition(tmp_path: Path) -> None:
    csv = make_chest_xray(tmp_path / "data")
    rows = {
        **{"name": "Notes", "csv": str(csv), "images": str(csv.parent / "images"), "label": "finding"},
        **{"classes": ["COVID-19", "SARS", "Pneumocystis", "Streptococcus", "No Finding"], "group": "patientid"},
        **{"leave_out": ["todo", "Unknown", "Lipoid", "COVID-19, ARDS"]},
        "tokenizer": str(csv.parents[1] / "vocab" / "bert-base-uncased-vocab.txt"),
    }
    text = {"kind": "text", "columns": "clinical_notes", "length": 12, "mask_words": ["sars"], "empty": "leave_out"}
    image = {"kind": "image", "column": "filename", "side": 16, "fit": "crop"}
    one = ImageText(
        store=str(tmp_path / "preset"),
        **{
            **rows,
            "image": "filename",
            "text": "clinical_notes",
            "text_length": 12,
            "side": 16,
            "mask_words": ["sars"],
        },
    )
    two = FromCSV(store=str(tmp_path / "composed"), modalities={"image": image, "text": text}, **rows)
    for data in (one, two):
        data.prepare()
    empty = (pd.read_csv(csv, dtype=str, keep_default_na=False)["clinical_notes"] == "").sum()
    assert sum(one.packed_meta()["part_counts"]["text"]["blank"].values()) > 0 < empty
    for split in SPLITS:
        for name in ("text", "target"):
            assert torch.equal(one.split(split).read(name), two.split(split).read(name))
    ids = two.split("test").read("text")[:3]
    assert two.strings("text", ids) == one.strings("text", ids) and all(two.strings("text", ids))


# Checksums of what the reader of images and tables packed before it was a preset.
BEFORE = {
    "test/image.rows.npy": "57b85444aa35323f",
    "test/image_absent.npy": "8fec8de921761c38",
    "test/name.npy": "0af04625121f1e8b",
    "test/table_missing.npy": "26a6a46a466d691d",
    "test/target.npy": "b243699b833ef90d",
}
SIGNATURE = "0f1870e4923e3131a81cf6eda223c9318c65d6596e5fb84730aeef3a05691a02"


def test_stores_of_earlier_versions_are_used_unchanged(tmp_path: Path, rows: dict[str, Any]) -> None:
    """They state the values of the table at the top of meta.json, and in its source."""
    data = preset(tmp_path, rows, without_image="missing", scaling="min_max", natural_missing="fill")
    data.prepare()
    assert data.packed_meta()["signature"] == SIGNATURE, "finished runs on them go on"
    assert {name: data.store.digest("test")[name] for name in BEFORE} == BEFORE
    frame = data.read_frame().head(8)
    expected = data.encode_rows(frame, data.images, "new", unknown="missing").arrays
    described, scale = data.describe_inputs(), data.number_scale
    file = data.store.folder / "meta.json"
    meta = json.loads(file.read_text())
    meta["files"].pop(file.name)
    table = meta.pop("parts")["table"]
    meta.pop("part_counts"), table.pop("scale")
    meta |= {key: table.pop(key) for key in ("columns", "cardinalities")}
    meta["source"] |= table
    file.write_text(json.dumps(meta))
    stamp = file.stat().st_mtime_ns
    again = preset(tmp_path, rows, without_image="missing", scaling="min_max", natural_missing="fill")
    again.prepare()
    assert file.stat().st_mtime_ns == stamp and again.describe_inputs() == described
    assert again.number_scale == scale != preset(tmp_path, rows).number_scale
    got = again.encode_rows(frame, again.images, "new", unknown="missing").arrays
    assert got.keys() == expected.keys() and all(np.array_equal(got[key], expected[key]) for key in got)
    del meta["source"]["fill"]
    file.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"dataset\.natural_missing=fill: .* delete their folder"):
        again.encode_rows(frame, again.images, "new", unknown="missing")
