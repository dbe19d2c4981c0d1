"""Run directories and files that are whole or absent."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import re
import subprocess
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from datasets.base import MultimodalDataModule
from datasets.clip_listing import MediaFolder
from trainers.config.build import data_arguments, data_class, store_path
from trainers.config.compose import CONFIGS, compose_config, register
from trainers.loading import Run
from utils.errors import UserError
from utils.files import replacing
from utils.run_directory import (
    RunDirectory,
    current_names,
    environment,
    file_hash,
    first_difference,
    git_commit,
    write_json,
)
from utils.signatures import constructor_arguments

SETTINGS = {"seed": 0, "model": {"width": 128, "layers": 2}, "rates": [0.2, 0.4]}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    paths = ("root", "lists", "recordings", "tokenizer")
    return RunDirectory(tmp_path / "PolyMNIST" / "DyMo" / "default" / "seed0", data_paths=paths)


def changed(**model: int) -> dict[str, object]:
    return {**SETTINGS, "model": {"width": 128, "layers": 2, **model}}


# --------------------------------------------------------------------------------------------------- first_difference


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {}, None),
        (SETTINGS, changed(), None),
        (SETTINGS, changed(width=64), "model.width: 128 -> 64"),
        (SETTINGS, changed(heads=4), "model.heads: None -> 4"),
        ({"a": {"b": 1}}, {"a": 1}, "a: {'b': 1} -> 1"),
        ({"a": [1, 2]}, {"a": [2, 1]}, "a: [1, 2] -> [2, 1]"),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, "a: 1 -> 2"),
        ({"a": 1}, {"a": True}, None),  # JSON tells them apart, Python does not; no setting changes its type so
        ({"a": None}, {}, None),  # a key that came later, with a default of null, spoils no older run
    ],
)
def test_first_difference(old: dict, new: dict, expected: str | None) -> None:
    assert first_difference(old, new) == expected


# ------------------------------------------------------------------------------------------- finished, begin, finish


def test_a_stage_is_finished_once_finish_was_called(run: RunDirectory) -> None:
    assert not run.finished("fit", SETTINGS) and not run.path.exists(), "asking makes no folder"
    assert run.begin("fit", SETTINGS) is False
    assert not run.finished("fit", SETTINGS), "begun is not finished"
    run.finish("fit", SETTINGS, best=0.5)
    assert run.finished("fit", SETTINGS) and not run.finished("test", SETTINGS)
    assert run.result("fit") == {"settings": SETTINGS, "best": 0.5}
    assert os.listdir(run / "stages") == ["fit.json"]


def test_an_interrupted_stage_goes_on_with_the_same_settings_only(run: RunDirectory) -> None:
    run.begin("fit", SETTINGS)
    assert run.begin("fit", SETTINGS) is True
    with pytest.raises(UserError) as error:
        run.finished("fit", changed(width=64))
    message = str(error.value)
    assert str(run.path) in message and "unfinished stage 'fit'" in message and "model.width: 128 -> 64" in message
    assert "name=" in message and "overwrite=true" in message and "\n" not in message
    assert run.begin("fit", changed(width=64)) is False
    assert run.begin("fit", SETTINGS) is False


def test_a_finished_stage_with_other_settings_is_refused_or_replaced(run: RunDirectory) -> None:
    run.begin("fit", SETTINGS)
    run.finish("fit", SETTINGS)
    before = (run / "stages" / "fit.json").read_bytes()
    with pytest.raises(UserError, match=r"holds a finished stage 'fit' with other settings \(model\.layers: 2 -> 3\)"):
        run.finished("fit", changed(layers=3))
    assert (run / "stages" / "fit.json").read_bytes() == before
    replacing_run = RunDirectory(run.path, overwrite=True)
    assert replacing_run.finished("fit", SETTINGS) is True, "overwrite=true repeats nothing that is valid"
    assert replacing_run.finished("fit", changed(layers=3)) is False
    assert replacing_run.begin("fit", changed(layers=3)) is False
    assert not (run / "stages" / "fit.json").exists(), "from here on the old output counts no more"
    replacing_run.finish("fit", changed(layers=3))
    assert run.finished("fit", changed(layers=3))


def test_the_description_of_finished_output_stays(run: RunDirectory) -> None:
    """A training that runs again does not change what the report says about results that are still there."""
    run.describe(OmegaConf.create({"width": 1}), {"cost": 3})
    run.finish("test", SETTINGS, files=["config.yaml", "environment.json"])
    run.describe(OmegaConf.create({"width": 2}))
    assert (run / "config.yaml").read_text() == "width: 1\n"
    assert json.loads((run / "environment.json").read_text())["cost"] == 3
    run.begin("test", changed())
    run.describe(OmegaConf.create({"width": 2}))
    assert (run / "config.yaml").read_text() == "width: 2\n"


def test_settings_compare_as_they_are_stored(run: RunDirectory) -> None:
    """Tuples, paths and OmegaConf nodes are what JSON makes of them."""
    config = OmegaConf.create({"width": 128, "twice": "${.width}", "rates": [0.2]})
    run.finish("fit", {"model": config, "path": Path("a/b"), "pair": (1, 2), 3: None})
    assert run.result("fit")["settings"]["pair"] == [1, 2]
    with pytest.raises(UserError, match="model"):
        run.finished("fit", {"model": {"width": 1}, "path": "a/b", "pair": [1, 2]})
    assert run.finished("fit", {"model": config, "path": "a/b", "pair": [1, 2], "3": None})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3"])
def test_a_damaged_marker_is_named(run: RunDirectory, text: str) -> None:
    run.finish("fit", SETTINGS)
    run.marker("fit").write_text(text)
    for ask in (lambda: run.finished("fit", SETTINGS), lambda: run.result("fit")):
        with pytest.raises(UserError, match=r"fit\.json is damaged .*: delete it, and its stage runs again"):
            ask()


def test_clear_removes_files_and_folders_and_tolerates_absence(run: RunDirectory) -> None:
    (run / "predictions" / "discard").mkdir(parents=True)
    for name in ("predictions/none.npz", "DONE", "keep"):
        (run / name).touch()
    run.clear("predictions", "DONE", "absent")
    assert os.listdir(run.path) == ["keep"]


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_process_killed_while_it_replaces_output_leaves_nothing_to_continue(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """Killed after none, one and both of two files are removed: old output never passes for the new settings."""
    names, other = ["weights", "logs"], {**SETTINGS, "seed": 1}
    run.begin("fit", SETTINGS)
    run.finish("fit", SETTINGS)
    for name in names:
        (run / name).touch()

    def killed(self: RunDirectory, *targets: str) -> None:
        for target in targets[:survived]:
            (self / target).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "clear", killed)
        with pytest.raises(KeyboardInterrupt):
            run.begin("fit", other, clear=names)
    assert not run.finished("fit", SETTINGS) and not run.finished("fit", other)
    assert not run.begin("fit", other, clear=names), "there is nothing to continue"
    assert not any((run / name).exists() for name in names)
    assert run.begin("fit", other, clear=names), "what it has begun itself"


def test_output_of_other_inputs_is_stale_by_name(run: RunDirectory) -> None:
    run.finish("test", SETTINGS, inputs={"test/image.npy": "1a", "test/target.npy": "2b"})
    assert run.finished("test", SETTINGS, inputs={"test/image.npy": "1a", "test/target.npy": "2b"})
    assert run.finished("test", SETTINGS) and run.finished("test", SETTINGS, inputs={})  # an older store
    with pytest.raises(UserError, match=r"with other settings \(test/target\.npy: 2b -> 3c\)"):
        run.finished("test", SETTINGS, inputs={"test/image.npy": "1a", "test/target.npy": "3c"})
    run.finish("test", SETTINGS)
    assert run.finished("test", SETTINGS, inputs={"test/image.npy": "1a"})  # an older run


# -------------------------------------------------------------------------------------------------------- description


def test_environment_says_what_ran_where() -> None:
    about = environment()
    assert sorted(about) == ["device", "git_commit", "packages", "python"]
    assert re.fullmatch(r"3\.1[12]\.\d+", about["python"])
    assert about["packages"]["torch"] == version("torch") == torch.__version__.split("+")[0]
    assert all(about["packages"][name] == version(name) for name in about["packages"])
    assert {"torch", "pytorch-lightning", "numpy", "hydra-core"} <= set(about["packages"])
    if not torch.cuda.is_available():
        assert about["device"] == f"cpu, {torch.get_num_threads()} threads"
    root = Path(__file__).resolve().parents[2]
    commit = about["git_commit"].removesuffix("-dirty")
    command = ["git", "rev-parse", "HEAD^{commit}", f"{commit}^{{commit}}"]
    known = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert commit == "not a git checkout" or len(set(known.stdout.split())) == 1


def test_describe_writes_the_resolved_configuration(run: RunDirectory) -> None:
    config = OmegaConf.create({"a": 1, "b": "${a}"})
    run.describe(config, {"mask_sha256_16": {"none": "0" * 16}})
    assert OmegaConf.to_container(OmegaConf.load(run / "config.yaml")) == {"a": 1, "b": 1}
    written = json.loads((run / "environment.json").read_text())
    assert written == json.loads(json.dumps(environment())) | {"mask_sha256_16": {"none": "0" * 16}}


def test_file_hash_is_the_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert file_hash(tmp_path / "f") == hashlib.sha256(content).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------- replacing


def test_replacing_puts_the_file_in_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.parent == path.parent
    with replacing(path) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two" and os.listdir(path.parent) == ["results.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [False, True])
def test_replacing_leaves_the_old_file_after_an_error(tmp_path: Path, error: type, written: bool) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        if written:
            temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["results.csv"]


def test_write_json_keeps_the_old_file_when_the_new_cannot_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_file_that_the_system_refuses_is_one_line(tmp_path: Path, error: OSError) -> None:
    message = rf"results\.csv cannot be written \({error.strerror}\): make room or correct"
    with pytest.raises(UserError, match=message), replacing(tmp_path / "results.csv"):
        raise error
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.csv cannot be written \("), replacing(tmp_path / "file" / "a.csv"):
        pass


# ------------------------------------------------------------------------------------------------------------- places


def test_markers_that_hold_paths_of_raw_files_stay_valid(run: RunDirectory) -> None:
    """Older markers hold ``lists``, ``recordings`` and ``tokenizer``, as the command of that time wrote them."""
    data = {"pairings": 20, "signature": "abc"}
    old = {"data": data | {"lists": "data/AVE", "recordings": None}, "prerequisites": {"a": {"data": data}}}
    run.finish("fit", old)
    new = {"data": data, "prerequisites": {"a": {"data": data | {"tokenizer": "/vocab.txt"}}}}
    assert run.finished("fit", new)
    with pytest.raises(UserError, match=r"data\.signature: abc -> abd"):
        run.finished("fit", new | {"data": {"pairings": 20, "signature": "abd"}})
    run.begin("gaussian", old)
    assert run.begin("gaussian", new)
    # Of what is no data, such a key is a setting like any other.
    run.finish("test", {"model": {"root": 1}})
    with pytest.raises(UserError, match=r"model\.root: 1 -> 2"):
        run.finished("test", {"model": {"root": 2}})


def test_settings_of_older_runs_are_read_under_the_present_names(run: RunDirectory) -> None:
    data = {"audio": {"_target_": "datasets.readers.audio.LogMel"}, "train_fraction": 0.5}
    settings = {"data": data, "masks": "models.baselines.masks.TrainingMasks", "follow": True}
    run.finish("fit", settings)
    old = run.marker("fit").read_text().replace("datasets.readers.", "datasets.").replace("train_fraction", "low")
    run.marker("fit").write_text(old.replace("baselines.masks", "baselines.base"))
    assert run.finished("fit", settings)
    assert current_names("dataset:\n  low: 0.5\n  baselines:\n    width: 8\n") == (
        "dataset:\n  train_fraction: 0.5\n  training_defaults:\n    width: 8\n"
    )


DATASET_CONFIGS = [OmegaConf.load(file) for file in (CONFIGS / "dataset").glob("*.yaml")]
DATA_MODULES = sorted({config.module._target_ for config in DATASET_CONFIGS if "module" in config})


@pytest.mark.parametrize("target", DATA_MODULES)
def test_data_modules_declare_their_arguments(target: str) -> None:
    """Whatever a data module turns into a Path is in its ``paths``: read from the source of its constructors."""
    data = get_object(target)
    converted = set()
    for kind in data.__mro__:
        if "__init__" not in vars(kind) or not issubclass(kind, MultimodalDataModule):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(vars(kind)["__init__"]))).body
        assert isinstance(node, ast.FunctionDef)
        parameters = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
        calls = [c for c in ast.walk(node) if isinstance(c, ast.Call) and getattr(c.func, "id", None) == "Path"]
        converted |= {a.id for c in calls for a in c.args if isinstance(a, ast.Name) and a.id in parameters}
    # `store` is where the packed store is, not what it is made of.
    assert converted - {"store"} and converted - {"store"} <= set(data.paths)
    assert {*data.paths, *data.read_time, *data.resources, *data.later} <= set(constructor_arguments(data))
    assert set(data.paths_or_names) <= set(data.paths) and set(data.folders) <= set(data.paths)


@pytest.mark.parametrize("dataset", sorted(f.stem for f in (CONFIGS / "dataset").glob("*.yaml")))
def test_relative_and_absolute_paths_are_the_same_data(dataset: str, tmp_path: Path) -> None:
    register()

    def context(make: Callable[[str], str]) -> Run:
        is_of_user = dataset.startswith(("Image", "Skin", "Small", "From"))
        given = ["dataset.label=kind", "dataset.classes=[a,b]"] if is_of_user else []
        given += ["dataset.continuous=[x]"] if dataset.endswith("ImageTable") else []
        given += ["dataset.modalities={a:{kind:table,continuous:[x]}}"] if dataset == "FromCSV" else []
        cfg = compose_config(f"dataset={dataset}", f"paths.cache={tmp_path}", *given)
        OmegaConf.set_struct(cfg, False)
        if "photographs" in cfg.dataset:
            cfg.dataset.photographs = None  # refused beside a folder of backgrounds
        for key in set(data_class(cfg).paths) & set(data_arguments(cfg)):
            cfg.dataset.module[key] = make(f"raw/{key}")
        return Run(cfg)

    relative, absolute = context(str), context(lambda path: str(Path(path).resolve()))
    assert relative.data_settings == absolute.data_settings
    assert not set(relative.data_settings) & set(data_class(relative.cfg).paths)
    # A tokenizer that is no file is a name.
    for ctx in (relative, absolute):
        ctx.cfg.dataset.module.pop("tokenizer", None)
    assert store_path(relative.cfg) == store_path(absolute.cfg)


def test_clips_of_a_relative_and_an_absolute_folder_have_one_signature(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(b"")
    outside = MediaFolder(tmp_path / "clips")
    listed = [MediaFolder(Path("clips")).clip("a", 0), outside.clip("a", 0)]
    assert listed[0].plain_values() == listed[1].plain_values() and listed[0].plain_values()[2][0] == "clips/a.wav"
    monkeypatch.chdir(tmp_path / "clips")
    assert outside.clip("a", 0).plain_values()[2][0] == "a.wav"


def test_a_copy_without_git_notes_the_commit_that_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    assert git_commit() == "not a git checkout"
    monkeypatch.setenv("GIT_COMMIT", "85df5c3")
    assert git_commit() == "85df5c3"
