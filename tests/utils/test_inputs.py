"""A file of trained parameters is refused where its inputs mean something else: kinds of file x kinds of change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.torch
import torch
from omegaconf import DictConfig, OmegaConf

from datasets.demo.multi_feature_digits import make_views
from datasets.image_table_module import ImageTableModule
from datasets.missingness import parse_scenario
from datasets.multi_feature_digits import MultiFeatureDigits
from datasets.readers.tokens import identity, load_tokenizer
from tests.makers import make_image_table
from trainers import run as pipeline
from trainers.config.compose import compose_config
from trainers.loading import Run
from utils.errors import UserError
from utils.inputs import KEY, from_architecture, input_differences

IMAGE = {"_target_": "models.encoders.convolutional.PolyMNISTEncoder", "width": 16}
TABLE = {"_target_": "models.encoders.table.TableEncoder", "width": 16, "blocks": 1, "heads": 2}
VECTOR = "models.imputers.mopoe_networks.Vector"
DATA: dict[str, Any] = {
    "classes": ["nut", "bolt", "screw"],
    "categorical": {"metal": None, "finish": None},
    "continuous": ["weight", "length"],
    "side": 28,
}
# Change -> settings that differ, and what the message shows.
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "class order": (
        {"classes": ["bolt", "nut", "screw"]},
        r"classes \[nut, bolt, screw\], this run has \[bolt, nut, screw\] \(the same in another order\)",
    ),
    "order of numbers": (
        {"continuous": ["length", "weight"]},
        r"columns of 'table' \[(metal, finish, )?weight, length\], this run has \[(metal, finish, )?length, weight\]",
    ),
    "order of categories": (
        {"categorical": {"finish": None, "metal": None}},
        r"columns of 'table' \[metal, finish, .*\], this run has \[finish, metal, .*\] \(the same in another order\)",
    ),
    "level order": (
        {"categorical": {"metal": ["steel", "brass"], "finish": None}},
        r"levels of column 'metal' of 'table' \[brass, steel\], this run has \[steel, brass\] \(the same in another or",
    ),
    "other levels": (
        {"csv": {"metal": {"brass": "copper"}}},
        r"levels of column 'metal' of 'table' \[brass, steel\], this run has \[copper, steel\]: list them",
    ),
    "kind of scaling": (
        {"scaling": "min_max"},
        r"column 'weight' of 'table' scaled with zero .* and unit .*, this run has zero .* and unit ",
    ),
    "another unit": (
        {"csv": {"length": 1000.0}},
        r"column 'length' of 'table' scaled with zero (1|2)\d\.\d* and unit .*, this run has zero (1|2)\d{4}",
    ),
    "image size": (
        {"side": 36},
        r"shape \[3, 28, 28\] of 'image', this run has \[3, 36, 36\]|no encoder for modality 'image'.*36, 36",
    ),
    "modality order": (
        {"modalities": ["table", "image"]},
        r"modalities \['?image'?, '?table'?\], (this run|.*Parts|ImageTable) has \['?table'?, '?image'?\] \(the same",
    ),
}
# What a kind of file does not depend on: recoveries not on the classes, those of tables alone not on images.
UNAFFECTED = {
    "IMI": {"class order", "image size", "modality order"},
    "Mean": {"class order"},
    "TIP": {"class order"},
    "MoPoE": {"class order"},
}
KINDS = ("model", "gaussian", *UNAFFECTED)
PAIRS = [
    pytest.param(kind, change, id=f"{kind}-{change}")
    for kind in KINDS
    for change in CHANGES
    if kind != "MoPoE" or change not in ("order of categories", "level order", "other levels")
]


def configure(folder: Path, csv: Path, change: dict[str, Any], *overrides: str) -> DictConfig:
    """The shipped configuration of ``dataset=ImageTable`` with small networks and the data of ``change``."""
    small = [
        "dataset=ImageTable",
        f"paths.cache={folder / 'cache'}",
        f"paths.output={folder / 'out'}",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "dataset.stored_side=40",
        "dataset.training_defaults.batch_size=24",
        "dataset.augmentation=null",
        "distance_metric=squared_euclidean",
        "imputer=Zero",
        "imputer.quality.judge_epochs=1",
        "missing.test=[none]",
        "model.backbone.module.width=16",
        "model.backbone.module.heads=2",
        "model.backbone.module.projection=8",
        "model.backbone.module.prototype_start=1",
        "model.backbone.training.max_epochs=1",
    ]
    chosen = {override.partition("=")[0]: override for override in (*small, *overrides)}
    cfg = compose_config(*chosen.values())
    OmegaConf.set_struct(cfg, False)
    settings = {**DATA, **change}
    if cfg.imputer.name == "MoPoE":  # which takes no categories
        settings["categorical"] = None
    replaced = settings.pop("csv", {})
    cfg.dataset.csv, cfg.dataset.images = str(_changed(csv, replaced)), str(csv.parent / "photos")
    cfg.dataset.image, cfg.dataset.image_suffix, cfg.dataset.label = "photo", ".jpg", "kind"
    cfg.dataset.missing_values, cfg.dataset.split = ["unknown"], "part"
    for key, value in settings.items():
        cfg.dataset[key] = value
    cfg.dataset.encoders = {"image": IMAGE, "table": TABLE}
    if cfg.imputer.name == "IMI":
        cfg.imputer.module.trees = 3
    if cfg.imputer.name == "TIP":
        cfg.imputer.image_encoder, cfg.imputer.table_encoder = IMAGE, TABLE
        cfg.imputer.module.blocks, cfg.imputer.module.heads = 1, 2
    if cfg.imputer.name == "MoPoE":
        cfg.imputer.latent = 8
        cfg.imputer.encoders = {"table": {"_target_": f"{VECTOR}Posterior", "latent": 8, "features": 2}}
        cfg.imputer.decoders = {"table": {"_target_": f"{VECTOR}Decoder", "latent": 8, "features": 2}}
    if "max_epochs" in cfg.imputer.training:
        cfg.imputer.training.max_epochs, cfg.imputer.training.batch_size = 1, 24
    OmegaConf.set_struct(cfg, True)
    return cfg


def _changed(csv: Path, replaced: dict[str, Any]) -> Path:
    """A table beside ``csv`` with a column of splits, in which values of some columns are others."""
    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    # Not drawn, as the draw depends on the order of the classes.
    frame["part"] = [("train", "train", "train", "val", "test")[i // 3 % 5] for i in range(len(frame))]
    for column, change in replaced.items():
        if isinstance(change, dict):
            frame[column] = frame[column].replace(change)
        else:
            frame[column] = [value and str(float(value) * change) for value in frame[column]]
    target = csv.with_name(f"parts-{'-'.join(replaced)}.csv")
    if not target.exists():
        frame.to_csv(target, index=False)
    return target


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Path]]:
    """Folder, table, and one file of every kind, trained on the unchanged data."""
    folder = tmp_path_factory.mktemp("inputs")
    csv = make_image_table(folder / "parts")
    files = {}
    stages = "stages=[prepare,fit,gaussian]"
    context = Run(run := configure(folder, csv, {}, stages))
    pipeline.run(run)
    files["model"], files["gaussian"] = context.checkpoint, context.gaussian
    for imputer in UNAFFECTED:
        pipeline.run(run := configure(folder, csv, {}, f"imputer={imputer}", "stages=[prepare,impute]"))
        files[imputer] = Run(run).imputer_checkpoint
    return folder, csv, files


def load(kind: str, files: dict[str, Path], configured: Callable[..., DictConfig]) -> Any:
    """Load a file as ``model.transformer_checkpoint``, ``model.gaussian`` or ``imputer.checkpoint``."""
    if kind in UNAFFECTED:
        context = Run(configured(f"imputer={kind}", f"imputer.checkpoint={files[kind]}"))
        context.data.prepare()
        return context.load_imputer(), context
    overrides = [f"model.transformer_checkpoint={files['model']}"]
    if kind == "gaussian":
        overrides.append(f"model.gaussian={files['gaussian']}")
    context = Run(configured(*overrides))
    context.data.prepare()
    if kind == "model":
        return context.load_model(), context
    return context.load_parameters(context.build().as_backbone(str(context.distance_metric))), context


@pytest.mark.parametrize(("kind", "change"), PAIRS)
def test_another_meaning_of_the_inputs_is_refused(trained, kind: str, change: str, monkeypatch) -> None:
    folder, csv, files = trained
    settings, message = CHANGES[change]

    def configured(*overrides: str) -> DictConfig:
        return configure(folder, csv, settings, *overrides)

    if "modalities" in settings:
        usual = ImageTableModule.modalities
        monkeypatch.setattr(ImageTableModule, "modalities", property(lambda self: usual.fget(self)[::-1]))
        monkeypatch.setattr(
            ImageTableModule, "modality_names", property(lambda self: [m.name for m in self.modalities])
        )
    if change not in UNAFFECTED.get(kind, ()):
        with pytest.raises(UserError, match=message) as error:
            load(kind, files, configured)
        assert kind == "MoPoE" or str(files[kind]) in str(error.value)
        assert "\n" not in str(error.value)
        return
    imputer, context = load(kind, files, configured)
    batch = next(iter(context.data.loader("test", parse_scenario("none"))))
    missing = torch.zeros_like(batch.missing)
    missing[:, context.data.modality_names.index("table")] = True
    recovered = imputer.impute(batch.inputs, missing, batch.index)["table"]
    same, usual_context = load(kind, files, lambda *overrides: configure(folder, csv, {}, *overrides))
    rows = next(iter(usual_context.data.loader("test", parse_scenario("none"))))
    missing = torch.zeros_like(rows.missing)
    missing[:, usual_context.data.modality_names.index("table")] = True
    torch.testing.assert_close(same.impute(rows.inputs, missing, rows.index)["table"], recovered)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_meaning_is_accepted_silently(trained, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder, csv, files = trained
    with caplog.at_level("INFO"):
        load(kind, files, lambda *overrides: configure(folder, csv, {}, *overrides))
    assert not [r for r in caplog.records if "assumed" in r.getMessage()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_without_a_description_loads_and_says_what_is_assumed(
    trained, kind: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folder, csv, files = trained
    older = tmp_path / files[kind].name
    if kind == "gaussian":
        with safetensors.safe_open(files[kind], "pt") as file:
            header = file.metadata()
        about = json.loads(header["about"])
        assert about.pop(KEY)["classes"] == DATA["classes"]
        header["about"] = json.dumps(about)
        safetensors.torch.save_file(safetensors.torch.load_file(files[kind]), older, header)
    else:
        content = torch.load(files[kind], weights_only=True)
        assert content.pop(KEY)["classes"] == DATA["classes"]
        torch.save(content, older)
    with caplog.at_level("INFO"):
        load(kind, {**files, kind: older}, lambda *overrides: configure(folder, csv, {}, *overrides))
    (line,) = [r.getMessage() for r in caplog.records if f"{older} does not say" in r.getMessage()]
    assert "the modalities image, table in this order" in line
    assert ("the classes nut, bolt, screw" in line) is (kind in ("model", "gaussian"))


def test_a_stage_alone_refuses_its_own_checkpoint_once_the_data_changed(trained) -> None:
    """The settings of a finished fit are compared by stage fit only; stage test reads the file."""
    folder, csv, files = trained
    changed = configure(folder, csv, CHANGES["class order"][0], "stages=[test]")
    with pytest.raises(UserError, match=f"{files['model']} was made with classes"):
        pipeline.run(changed)


def description(**changes: Any) -> dict[str, Any]:
    audio = {"front_end": {"name": "LogMel", "rate": 16000}, "normalisation": {"mean": [-4.2], "deviation": [9.0]}}
    modalities = [
        {"name": "sound", "kind": "audio", "shape": [8, 4], **audio},
        {"name": "words", "kind": "text", "shape": [16], "vocabulary": 30, "tokenizer": "abc"},
    ]
    return {"version": 1, "task": "multiclass", "classes": ["a", "b"], "modalities": modalities} | changes


@pytest.mark.parametrize(
    ("modality", "key", "value", "message"),
    [
        (0, "front_end", {"name": "LogMel", "rate": 8000}, "front_end.rate 16000 of 'sound', this run has 8000: use"),
        (0, "normalisation", {"mean": [0.0], "deviation": [9.0]}, "normalisation.mean [-4.2] of 'sound', this run has"),
        (1, "tokenizer", "abd", "tokenizer abc of 'words', this run has abd: use"),
        (1, "vocabulary", 31, "vocabulary 30 of 'words', this run has 31: use"),
        (1, "kind", "image", "'words' as text, this run has image: give a file"),
    ],
)
def test_sound_and_text_are_compared_by_front_end_and_tokenizer(modality: int, key: str, value: Any, message: str):
    current = description()
    current["modalities"][modality] = {**current["modalities"][modality], key: value}
    (problem,) = input_differences(description(), current)
    assert problem.startswith(message)
    assert not input_differences(description(), description())
    assert not input_differences(description(), current, kinds=["table"])


def test_what_only_one_side_knows_is_not_compared() -> None:
    older = from_architecture({"modalities": [["sound", "audio", [8, 4]], ["words", "text", [16]]]})
    assert not input_differences(older, description())
    assert not input_differences({}, description()) and not from_architecture({})
    older["modalities"][0]["shape"] = [9, 4]
    (problem,) = input_differences(older, description())
    assert problem.startswith("shape [9, 4] of 'sound', this run has [8, 4]")


def test_rounding_of_a_scaling_is_no_difference() -> None:
    def table(zero: float) -> dict[str, Any]:
        column = {"name": "weight", "scaling": [zero, 2.0]}
        return description(modalities=[{"name": "t", "kind": "table", "shape": [1], "columns": [column]}])

    assert not input_differences(table(0.1 + 0.2), table(0.3))
    assert len(input_differences(table(0.3), table(0.3001))) == 1


def test_long_lists_are_told_by_their_first_difference() -> None:
    names = [f"class{i}" for i in range(20)]
    swapped = [*names[:17], "class18", "class17", "class19"]
    (problem,) = input_differences(description(classes=names), description(classes=swapped))
    assert "number 17 is 'class17', this run has 'class18' (the same in another order)" in problem


# ------------------------------------------------------------------------------------- descriptions of the data sets


def test_zero_and_unit_lead_from_the_source_to_the_stored_values(trained) -> None:
    folder, csv, _ = trained
    for scaling in ("standard", "min_max"):
        data = Run(configure(folder, csv, {"scaling": scaling})).data
        data.prepare()
        table = data.describe_inputs()["modalities"][1]
        assert [c["name"] for c in table["columns"]] == ["metal", "finish", "weight", "length"]
        assert [c.get("levels") for c in table["columns"][:2]] == [["brass", "steel"], ["black", "plain", "zinc"]]
        source = pd.read_csv(csv).set_index("photo")
        for j, column in enumerate(table["columns"][2:], 2):
            raw = source.loc[data.split("test").names(), column["name"]].to_numpy()
            stored, (zero, unit) = data.split("test").read("table").numpy()[:, j], column["scaling"]
            known = ~np.isnan(raw)
            assert known.sum() > 8
            np.testing.assert_allclose(stored[known], (raw[known] - zero) / unit, rtol=1e-5, atol=1e-5)


def test_the_six_views_of_digits_say_how_they_were_scaled(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    make_views(tmp_path / "raw")
    data = MultiFeatureDigits(store=str(tmp_path / "store"), root=str(tmp_path / "raw"), demo=True)
    data.prepare()
    (folder,) = (p for p in tmp_path.rglob("mfeat-mor") if p.is_file())
    raw = np.loadtxt(folder)
    for i, column in enumerate(data.describe_inputs()["modalities"][3]["columns"]):
        zero, unit = column["scaling"]
        stored = np.concatenate([data.split(s).read("mor").numpy()[:, i] for s in ("train", "val", "test")])
        np.testing.assert_allclose(np.sort(stored), np.sort((raw[:, i] - zero) / unit), rtol=1e-4, atol=1e-5)


def test_a_tokenizer_is_known_by_what_it_does(tmp_path: Path) -> None:
    words = ["red", "green", "blue"]
    names = ("a/vocab.txt", "b/vocab.txt", "c/vocab.txt")
    for name, listed in zip(names, (words, words, words[::-1])):
        (tmp_path / name).parent.mkdir()
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *listed]
        (tmp_path / name).write_text("\n".join(tokens) + "\n")
    first, second, other = (identity(load_tokenizer(str(tmp_path / name))) for name in names)
    assert first == second != other and len(first) == 16
    assert identity(load_tokenizer(str(tmp_path / "a"))) == first, "given as a folder"
