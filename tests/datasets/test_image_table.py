"""A user's own images and table: coding, splits, gaps, images, refusals, and the whole way through configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from datasets.image_table import ImageTable
from datasets.missingness import parse_scenario
from datasets.readers import images
from datasets.readers.images import ImageReader
from datasets.splits import draw_split
from tests.conftest import Reads
from tests.makers import make_image_table
from trainers import run as pipeline
from trainers.config.build import build_data, store_path
from trainers.config.compose import CONFIGS, compose_config
from trainers.config.validate import validate
from trainers.loading import Run
from trainers.report import runs
from trainers.report.runs import read_results, stored_rate
from utils.errors import UserError

CLASSES = ["nut", "bolt", "screw"]


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return make_image_table(tmp_path / "parts")


@pytest.fixture
def make(tmp_path: Path, csv: Path) -> Callable[..., ImageTable]:
    def build(**changes: Any) -> ImageTable:
        arguments: dict[str, Any] = {
            "store": str(tmp_path / "store"),
            "name": "Parts",
            "csv": str(csv),
            "images": str(csv.parent / "photos"),
            "image": "photo",
            "image_suffix": ".jpg",
            "label": "kind",
            "classes": CLASSES,
            "categorical": {"metal": ["brass", "steel"], "finish": None},
            "continuous": ["weight", "length"],
            "missing_values": ["unknown"],
            "side": 16,
            "stored_side": 20,
        }
        return ImageTable(**{**arguments, **changes})

    return build


def rows_by_name(data: ImageTable) -> dict[str, tuple[str, np.ndarray, np.ndarray, int, np.ndarray]]:
    """Name -> (split, cells, gaps, target, image) of every packed row."""
    actual = {}
    for split in ("train", "val", "test"):
        packed = data.split(split)
        gaps = data.natural_cells(split).get("table", np.zeros((len(packed), 4), dtype=bool))
        parts = (packed.read("table").numpy(), gaps, packed.read("target").numpy(), packed.read("image").numpy())
        for i, name in enumerate(packed.names()):
            actual[name] = (split, *(part[i] for part in parts))
    return actual


def test_cells_are_coded_as_a_loop_over_the_file_codes_them(make: Callable[..., ImageTable], csv: Path) -> None:
    data = make()
    data.prepare()
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    packed = rows_by_name(data)
    assert sorted(packed) == sorted(frame["photo"]) and data.task == "multiclass" and data.class_names == CLASSES
    table = data.modalities[1]
    assert (table.kind, table.shape, table.cardinalities) == ("table", (4,), (2, 3))
    assert table.columns == ("metal", "finish", "weight", "length")
    finishes = ["black", "plain", "zinc"]
    assert data.store.meta()["source"]["levels"] == {"metal": ["brass", "steel"], "finish": finishes}  # type: ignore[index]
    train = [row for row in frame.to_dict("records") if packed[row["photo"]][0] == "train"]
    for row in frame.to_dict("records"):
        _, cells, gaps, target, image = packed[row["photo"]]
        assert target == CLASSES.index(row["kind"])
        for j, (name, levels) in enumerate((("metal", ["brass", "steel"]), ("finish", finishes))):
            assert gaps[j] == (row[name] in ("", "unknown"))
            if not gaps[j]:
                assert cells[j] == levels.index(row[name])
            else:
                known = [r[name] for r in train if r[name] in levels]
                assert cells[j] == levels.index(max(levels, key=known.count)), "the commonest level"
        for j, name in enumerate(("weight", "length"), 2):
            numbers = [float(r[name]) for r in train if r[name]]
            assert gaps[j] == (row[name] == "")
            expected = 0.0 if gaps[j] else (float(row[name]) - np.mean(numbers)) / np.std(numbers, ddof=1)
            assert cells[j] == pytest.approx(expected, abs=1e-5)
        with Image.open(csv.parent / "photos" / f"{row['photo']}.jpg") as source:
            wanted = np.asarray(source.convert("RGB").resize((20, 20), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(image, wanted)
    assert data.store.meta()["part_counts"]["table"]["missing_cells"]["train"]["weight"] > 0  # type: ignore[index]


def test_splits_are_stratified_seeded_and_disjoint(make: Callable[..., ImageTable], tmp_path: Path) -> None:
    data = make()
    data.prepare()
    counts = data.store.meta()["class_counts"]  # type: ignore[index]
    assert {s: list(c.values()) for s, c in counts.items()} == {"train": [14] * 3, "val": [2] * 3, "test": [4] * 3}
    homes = {name: row[0] for name, row in rows_by_name(data).items()}
    again, other = (make(store=str(tmp_path / f"s{seed}"), split_seed=seed) for seed in (2025, 1))
    again.prepare()
    other.prepare()
    assert (
        {n: r[0] for n, r in rows_by_name(again).items()} == homes != {n: r[0] for n, r in rows_by_name(other).items()}
    )


def test_a_group_stays_together_and_a_split_column_is_followed(make: Callable[..., ImageTable], csv: Path) -> None:
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    data = make(group="box", fractions=[0.5, 0.2, 0.3])
    data.prepare()
    split_of = {name: row[0] for name, row in rows_by_name(data).items()}
    homes = frame.groupby("box")["photo"].apply(lambda names: {split_of[n] for n in names})
    assert (homes.map(len) == 1).all() and set.union(*homes) == {"train", "val", "test"}

    frame["part"] = np.where(
        np.arange(len(frame)) % 5 == 0, "hold", np.where(np.arange(len(frame)) % 5 == 1, "dev", "fit")
    )
    frame.to_csv(csv, index=False)
    values = {"train": "fit", "val": ["dev"], "test": "hold"}
    data = make(split="part", split_values=values)
    data.prepare()
    split_of = {name: row[0] for name, row in rows_by_name(data).items()}
    wanted = {"fit": "train", "dev": "val", "hold": "test"}
    assert all(split_of[row["photo"]] == wanted[row["part"]] for row in frame.to_dict("records"))
    with pytest.raises(UserError, match=r"values of 'box' stand in more than one split"):
        make(split="part", split_values=values, group="box").prepare()
    with pytest.raises(UserError, match=r"24 values in column 'part' name no split, 'hold' \(12\), 'dev' \(12\)"):
        make(split="part", split_values={"train": "fit"}).prepare()


def test_parts_of_a_draw_have_their_sizes() -> None:
    labels = np.repeat([0, 1], [300, 100])
    parts = draw_split(400, labels, None, (0.7, 0.1, 0.2), 0)
    assert [len(p) for p in parts] == [280, 40, 80] and sorted(np.concatenate(parts)) == list(range(400))
    assert [int(labels[p].sum()) for p in parts] == [70, 10, 20]
    assert [len(p) for p in draw_split(400, None, None, (0.5, 0.0, 0.5), 0)] == [200, 0, 200]


def test_several_labels_with_gaps(make: Callable[..., ImageTable], csv: Path) -> None:
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    frame["rusty"], frame["bent"] = "0", "1"
    frame.loc[:9, "rusty"], frame.loc[5:7, "bent"], frame.loc[8, "bent"] = "1", "", "-1"
    frame.to_csv(csv, index=False)
    data = make(label=["rusty", "bent"], classes=None)
    data.prepare()
    assert data.task == "multilabel" and data.class_names == ["rusty", "bent"]
    targets = {name: row[3].tolist() for name, row in rows_by_name(data).items()}
    assert [targets[f"p{i}"] for i in (0, 5, 8, 20)] == [[1, 1], [1, -1], [1, -1], [0, 1]]
    frame.loc[3, "bent"] = "2"
    frame.to_csv(csv, index=False)
    with pytest.raises(UserError, match=r"1 labels in column 'bent' are outside 1, 0 and -1 .*row 4"):
        make(label=["rusty", "bent"], classes=None).prepare()


# ------------------------------------------------------------------------------------------------------------ refusals


def edited(csv: Path, **cells: str) -> None:
    """Set the first rows of columns: ``metal='tin'``; two rows where the value ends in ``*2``."""
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    for column, value in cells.items():
        text, _, times = value.partition("*")
        frame.loc[: int(times or 1) - 1, column] = text
    frame.to_csv(csv, index=False)


@pytest.mark.parametrize(
    ("cells", "changes", "message"),
    [
        ({}, {"continuous": ["wieght"]}, r"lacks 1 of 5 columns: wieght; did you mean 'weight'\?"),
        ({"metal": "tin*2"}, {}, r"2 values in column 'metal' are none of the 2 .*'tin' \(2\) .*row 1.*dataset.unseen"),
        ({"kind": "wing*3"}, {}, r"3 labels in column 'kind' are outside dataset.classes, 'wing' \(3\) .*row 1"),
        ({"kind": ""}, {}, r"1 rows without a label in column 'kind'"),
        ({"photo": ""}, {}, r"1 rows without an image name"),
        ({"weight": "heavy"}, {}, r"1 cells in column 'weight' are no numbers, 'heavy' \(1\)"),
        ({"length": "inf"}, {}, r"1 cells in column 'length' are no numbers, 'inf'"),
        ({"photo": "gone"}, {}, r"without their image file: 1 of \d+ in \w+, the first is .*gone\.jpg"),
        ({}, {"images": None}, r"without their image file: 42 of 42 in train, 6 of 6 in val, 12 of 12 in test"),
        ({}, {"classes": ["nut", "bolt", "screw", "rivet"]}, r"no training row of 1 of 4 classes \(rivet\)"),
        ({}, {"classes": []}, r"dataset.classes is empty"),
        ({}, {"categorical": {"metal": ["brass", "steel", "brass"]}}, r"categorical\.metal lists 'brass' twice"),
        ({}, {"categorical": {"metal": ["tin"]}, "unseen": "missing"}, r"'metal' has none of the levels tin in the tr"),
        ({}, {"continuous": ["kind"]}, r"column 'kind' is a label and an input"),
        ({}, {"continuous": ["metal"]}, r"column 'metal' is both categorical and continuous"),
        ({}, {"categorical": {}, "continuous": []}, r"name at least one column"),
        ({}, {"fractions": [0.5, 0.1, 0.1]}, r"three shares .* that add up to 1"),
        ({}, {"csv": "absent.csv"}, r"there is no table absent\.csv"),
        ({}, {"csv": None}, r"dataset.csv=null"),
        ({}, {"stored_side": 8}, r"images are stored no smaller"),
        ({"kind": "nut*50"}, {"fractions": [0.5, 0.25, 0.25]}, r"cannot divide 60 rows .*class (bolt|screw) has \d"),
    ],
)
def test_bad_input_is_named_with_counts(
    make: Callable[..., ImageTable], csv: Path, cells: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    edited(csv, **cells)
    with pytest.raises(UserError, match=message) as error:
        make(**changes).prepare()
    assert "\n" not in str(error.value)


def test_an_unseen_level_can_count_as_missing(make: Callable[..., ImageTable], csv: Path) -> None:
    edited(csv, metal="tin*2")
    data = make(unseen="missing")
    data.prepare()
    rows = rows_by_name(data)
    assert all(rows[name][2][0] and rows[name][1][0] in (0, 1) for name in ("p0", "p1"))


def test_unreadable_images_are_counted_and_named(make: Callable[..., ImageTable], csv: Path) -> None:
    photos = csv.parent / "photos"
    bad = [p.stem for p in sorted(photos.glob("p1*.jpg"))][:5]
    for stem in bad:
        (photos / f"{stem}.jpg").write_bytes((photos / f"{stem}.jpg").read_bytes()[:100])
    with pytest.raises(UserError, match=r"\d of \d+ images of split '\w+' cannot be read: .*p1.*\.jpg \("):
        make().prepare()


# -------------------------------------------------------------------------------------------------------------- images


def test_arrays_are_read_like_pictures(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "f.npy", (array / 255).astype(np.float32))
    np.save(tmp_path / "g.npy", array[:, :, 0])
    Image.fromarray(array).save(tmp_path / "a.png")
    colour, grey, small = ImageReader(9), ImageReader(9, channels=1), ImageReader(5)
    for name in ("a.npy", "f.npy", "a.png"):
        assert np.array_equal(colour(tmp_path / name), array.transpose(2, 0, 1)), name
    assert np.array_equal(grey(tmp_path / "g.npy")[0], array[:, :, 0])
    np.save(tmp_path / "two.npy", array[:, :, :2])
    assert np.array_equal(ImageReader(9, channels=2)(tmp_path / "two.npy"), array.transpose(2, 0, 1)[:2])
    resized = Image.fromarray(array).resize((5, 5), Image.Resampling.BILINEAR)
    for name in ("a.npy", "f.npy", "a.png"):
        assert np.array_equal(small(tmp_path / name), np.asarray(resized).transpose(2, 0, 1)), name
    assert np.array_equal(grey(tmp_path / "a.png")[0], np.asarray(Image.fromarray(array).convert("L")))
    part = ImageReader(4, box=(1, 2, 5, 6))
    assert np.array_equal(part(tmp_path / "a.npy"), array[2:6, 1:5].transpose(2, 0, 1))
    for content in (array / 255 + 1, array[:, :, :2], np.full((3, 3, 3), np.nan), array[:5]):
        np.save(tmp_path / "bad.npy", content)
        with pytest.raises(ValueError, match=r"values outside|an array of shape|9x5 pixels, at least 5x6"):
            part(tmp_path / "bad.npy")


def test_an_interrupted_prepare_goes_on(
    make: Callable[..., ImageTable], csv: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded is not decoded again, but where the file changed; the table may change meanwhile."""
    monkeypatch.setattr(images, "CHUNK", 8)
    content = make().find_source().load()
    names = {split: content.names[rows].tolist() for split, rows in content.splits.items()}
    reads.stop_at = names["train"][30]
    with pytest.raises(KeyboardInterrupt):
        make().prepare()
    assert set(names["train"][:24]) <= set(reads.all()) and not make().store.folder.exists()
    reads.stop_at = None
    Image.new("RGB", (24, 24), (9, 9, 9)).save(csv.parent / "photos" / f"{names['train'][3]}.jpg")
    edited(csv, length="99")
    data = make()
    data.prepare()
    assert reads.all() == sorted([names["train"][3], *names["train"][24:], *names["val"], *names["test"]])
    assert data.split("train").names() == names["train"]
    pixels = data.split("train").read("image")
    for row in (0, 3, 23, 24, 41):
        with Image.open(csv.parent / "photos" / f"{names['train'][row]}.jpg") as picture:
            wanted = np.asarray(picture.resize((20, 20), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(pixels[row], wanted)
    assert not list(data.store.folder.parent.glob(".*")), "no working folder or lock is left"


def test_a_store_is_made_once_and_again_after_a_change(make: Callable[..., ImageTable], csv: Path) -> None:
    data = make()
    data.prepare()
    stamp = (data.store.folder / "meta.json").stat().st_mtime_ns
    data.scratch.mkdir()  # of a process that was killed while it removed it
    (data.scratch / "train.done.npy").touch()
    make().prepare()
    assert (data.store.folder / "meta.json").stat().st_mtime_ns == stamp
    assert not list(data.store.folder.parent.glob("*.decoding")), "no working folder is left"
    edited(csv, length="99")
    make().prepare()
    assert (data.store.folder / "meta.json").stat().st_mtime_ns != stamp


def test_batches_are_resized_and_training_batches_augmented(make: Callable[..., ImageTable]) -> None:
    from datasets.transforms import ColumnPool, JointAugmentation

    data = make(augmentation=JointAugmentation(rate=1.0, corruption=0.5))
    data.prepare()
    none = parse_scenario("none")
    epochs = []
    for epoch in (0, 0, 1):
        loader = data.loader("train", none, train=True, batch_size=50)
        loader.set_epoch(epoch)
        batch = next(iter(loader))
        order = batch.index.argsort()
        epochs.append((batch.inputs["image"][order], batch.inputs["table"][order]))
    assert epochs[0][0].shape == (42, 3, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(epochs[0], epochs[1])), "seed and epoch decide"
    assert not any(torch.equal(a, b) for a, b in zip(epochs[0], epochs[2]))
    stored = data.split("train").read("table")
    changed = epochs[0][1] != stored
    assert changed.any() and changed.sum(1).max() <= 2, "two of four columns"
    pool = ColumnPool(stored, torch.from_numpy(data.natural_cells("train")["table"]))
    for j in range(4):
        observed = set(pool.values[: pool.counts[j], j].tolist())
        assert set(epochs[0][1][changed[:, j], j].tolist()) <= observed
    test = next(iter(data.loader("test", none, batch_size=50)))
    assert torch.equal(test.inputs["table"], data.split("test").read("table"))
    assert (
        test.inputs["image"].shape == (12, 3, 16, 16) and test.missing[:, 1].any() and "table" in test.feature_missing
    )
    data.augmentation = JointAugmentation(rate=0.0)  # as stage impute may change it
    plain = next(iter(data.loader("train", none, train=True, batch_size=50)))
    assert torch.equal(plain.inputs["table"], stored[plain.index])
    filled = make(natural_missing="fill")
    assert not next(iter(filled.loader("test", none))).missing.any()
    rows = data.rows("test", np.array([3, 1]))
    assert torch.equal(rows.inputs["image"], test.inputs["image"][[3, 1]])


# ------------------------------------------------------------------------------------- configuration and documentation

ENCODERS = {
    "image": {"_target_": "models.encoders.convolutional.PolyMNISTEncoder", "width": 32},
    "table": {"_target_": "tests.networks.TableTokens", "width": 32},
}


def composed_config(tmp_path: Path, dataset: str, file: str | None = None, *overrides: str) -> DictConfig:
    """The configuration of a data set, from the shipped files and one more, with small encoders."""
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder, dirs_exist_ok=True)
    if file is not None:
        (folder / "dataset" / f"{dataset}.yaml").write_text(file)
    cfg = compose_config(f"dataset={dataset}", f"paths.output={tmp_path / 'out'}", *overrides, configs=folder)
    OmegaConf.set_struct(cfg, False)
    for name, node in zip(cfg.dataset.modalities, ENCODERS.values()):
        cfg.dataset.encoders[name] = node
    OmegaConf.set_struct(cfg, True)
    return cfg


TINY = (
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "dataset.side=28",
    "dataset.stored_side=32",
    "model=DynamicTransformer",
    "model.module.width=32",
    "model.training.max_epochs=2",
    "model.training.batch_size=16",
)


def test_the_section_of_the_manual_works_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration and the commands of docs/your-data.md, on a table with the columns that they name."""
    text = (CONFIGS.parent / "docs" / "your-data.md").read_text()
    section = text[text.index("## Your own images and table") :].split("\n## ")[0]
    (file,) = re.findall(r"```yaml\n(.*?)```", section, re.S)
    commands = re.findall(r"^python run\.py (.*)$", section, re.M)
    assert yaml.safe_load(file)["name"] == "Parts" and len(commands) >= 2
    (tmp_path / "data").mkdir()
    make_image_table(tmp_path / "data" / "parts")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        cfg = composed_config(tmp_path, "Parts", file, *command.replace("'", "").split()[1:], *TINY)
        pipeline.run(cfg)
    context = Run(cfg)
    results = pd.read_csv(context.directory / "results.csv")
    assert list(dict.fromkeys(results["scenario"])) == ["none", "whole_1", "table_value_0.5"]
    assert np.isfinite(results["value"]).all()
    stored = np.load(context.directory / "masks" / "table_value_0.5.npz")
    natural = context.data.natural_cells("test")["table"]
    assert (stored["cells_table"] >= natural).all() and stored["cells_table"].mean() >= 0.45
    about = json.loads((context.directory / "masks" / "table_value_0.5.json").read_text())
    assert about["cells"]["table"]["shape"] == list(natural.shape)
    assert context.data.split("train").read("image").shape[1:] == (3, 32, 32)


@pytest.mark.usefixtures("undrawn")
def test_several_labels_are_learned_tested_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_image_table(tmp_path / "data" / "parts")
    monkeypatch.chdir(tmp_path)
    frame = pd.read_csv("data/parts/parts.csv", dtype=str, keep_default_na=False)
    frame["rusty"] = (frame["kind"] == "nut").astype(int).astype(str)
    frame["bent"] = np.where(np.arange(len(frame)) % 4 == 0, "", np.arange(len(frame)) % 2).astype(str)
    frame.to_csv("data/parts/parts.csv", index=False)
    (file,) = re.findall(
        r"```yaml\n(.*?)```",
        (CONFIGS.parent / "docs" / "your-data.md").read_text().split("## Your own images")[1].split("\n## ")[0],
        re.S,
    )
    file = re.sub(r"label: .*", "label: [rusty, bent]", re.sub(r"classes: .*", "classes: ${dataset.label}", file))
    tiny = [o for o in TINY if not o.startswith("model")] + [
        "model.training.max_epochs=1",
        "missing.test=[none,whole_1]",
    ]
    cfg = composed_config(tmp_path, "Parts", file, "model=ModDrop", "model.module.width=32", *tiny)
    pipeline.run(cfg)
    directory = Run(cfg).directory
    results = pd.read_csv(directory / "results.csv")
    assert {"accuracy", "auroc", "f1_macro"} < set(results["metric"]) and np.isfinite(results["value"]).all()
    saved = np.load(directory / "predictions" / "none.npz")
    labelled = saved["target"] >= 0
    accuracy = ((saved["logits"] > 0) == (saved["target"] > 0))[labelled].mean()
    assert results.query("metric == 'accuracy' and scenario == 'none'")["value"].item() == pytest.approx(accuracy)
    cfg = composed_config(
        tmp_path, "Parts", file, "model=DyMo", "name=other", *[o for o in tiny if "max_epochs" not in o]
    )
    with pytest.raises(UserError, match="Parts has several labels, and the classes of DynamicTransformer exclude"):
        pipeline.run(cfg)


def test_a_partly_missing_table_does_not_count_as_missing_in_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the rows have empty cells: as missing tables they would put all points of the curve at one place."""
    make_image_table(tmp_path / "data" / "parts")
    monkeypatch.chdir(tmp_path)
    text = (CONFIGS.parent / "docs" / "your-data.md").read_text()
    (file,) = re.findall(r"```yaml\n(.*?)```", text.split("## Your own images")[1].split("\n## ")[0], re.S)
    scenarios = ["none", "nested_1_0.25", "nested_1_0.5", "random_0.5"]
    tiny = [o for o in TINY if not o.startswith("model")] + [f"missing.test=[{','.join(scenarios)}]"]
    cfg = composed_config(tmp_path, "Parts", file, "model=ModDrop", "model.training.max_epochs=1", *tiny)
    pipeline.run(cfg)
    context = Run(cfg)
    partly = context.data.natural_cells("test")["table"]
    assert 0.2 < partly.any(1).mean() < 0.9 and not partly.all(1).any()
    run = runs.FinishedRun(context.directory.path, read_results(context.directory / "results.csv"))
    rates = run.frame.groupby("scenario")["missing_rate"].first()
    n = len(partly)
    expected = {"none": 0, "nested_1_0.25": int(0.25 * n) / n, "nested_1_0.5": int(0.5 * n) / n, "random_0.5": 0.5}
    assert rates.to_dict() == pytest.approx(expected)
    # Results without the column get the same rates from the stored masks.
    assert {name: stored_rate(run, name) for name in scenarios} == pytest.approx(rates.to_dict())


def test_the_place_of_a_store_depends_on_what_is_in_it(tmp_path: Path) -> None:
    def place(*overrides: str) -> Path:
        return store_path(composed_config(tmp_path, "ImageTable", None, "dataset.csv=x.csv", *overrides))

    assert (
        place()
        == place("dataset.augmentation=null")
        == place("dataset.natural_missing=fill", "dataset.train_fraction=0.5")
    )
    assert (
        len({place(), place("dataset.stored_side=200"), place("dataset.continuous=[a]"), place("dataset.csv=y.csv")})
        == 4
    )


def test_skin_lesions_never_see_how_the_diagnosis_was_made(tmp_path: Path) -> None:
    cfg = composed_config(tmp_path, "SkinLesions")
    assert cfg.dataset.num_classes == 7
    assert {*cfg.dataset.categorical, *cfg.dataset.continuous} == {"sex", "localization", "age"}
    assert "dx_type" not in json.dumps(OmegaConf.to_container(cfg.dataset.module, resolve=True))


def test_the_real_skin_lesions_pack(tmp_path: Path) -> None:
    folder = Path(os.environ.get("DYMO_DATA", CONFIGS.parent / "data")) / "skin_lesions"
    if not folder.is_dir():
        pytest.skip(f"no HAM10000 in {folder} (DYMO_DATA names another place); made data cover the code above")
    cfg = composed_config(
        tmp_path,
        "SkinLesions",
        None,
        f"dataset.csv={folder / 'metadata.csv'}",
        f"dataset.images={folder / 'images'}",
        "dataset.stored_side=32",
        "dataset.side=32",
    )
    data = build_data(cfg)
    data.prepare()
    counts = data.store.meta()["class_counts"]  # type: ignore[index]
    total = {name: sum(counts[s][name] for s in counts) for name in data.class_names}
    assert total == {"akiec": 183, "bcc": 264, "bkl": 583, "df": 60, "mel": 491, "nv": 4323, "vasc": 80}
    gaps = sum(data.natural_cells(s)["table"].sum(0) for s in ("train", "val", "test"))
    assert gaps.tolist() == [36, 160, 36], "sex and place 'unknown', age empty"


def test_the_template_says_what_is_lacking(tmp_path: Path) -> None:
    cfg = composed_config(tmp_path, "ImageTable")
    validate(cfg)
    with pytest.raises(UserError, match=r"dataset\.csv=null"):
        build_data(cfg)
