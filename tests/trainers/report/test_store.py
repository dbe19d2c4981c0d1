"""Stored evidence: what it holds, what it refuses, and what is noticed when a file changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.trainers.report.runs import write_committed_run
from trainers.report.costs import cost_table
from trainers.report.evidence import check_files, read_manifest, stored_runs, write_manifest
from trainers.report.runs import gather, load_sorted
from trainers.report.statistics import compare
from trainers.report.store import main, npz, scrubbed
from utils.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [write_committed_run(root, model, seed) for model in ("DyMo", "M3Care") for seed in range(2)]


@pytest.fixture
def study(tmp_path, runs) -> Path:
    main(["made", *map(str, runs), "--results", str(tmp_path)])
    return tmp_path / "made"


def test_stored_runs_give_the_same_results_tests_and_masks(study, runs):
    with stored_runs(study) as stored:
        ours, _ = gather(runs)
        frames = [pd.concat([run.frame for run in group], ignore_index=True) for group in (stored, ours)]
        pd.testing.assert_frame_equal(*frames)
        pd.testing.assert_frame_equal(*map(cost_table, (stored, ours)))
        assert cost_table(stored)["fit_seconds"].tolist() == [10.5, 10.5]
        pd.testing.assert_frame_equal(*(compare(g, f, "accuracy") for g, f in zip((stored, ours), frames, strict=True)))
        for run, other in zip(stored, ours, strict=True):
            member = run.frame["model"].iloc[-1]  # a comparator of DyMo
            a, b = (load_sorted(r.predictions(member, "none"), "target", "missing") for r in (run, other))
            assert all(np.array_equal(a[key], b[key]) for key in ("index", "target", "missing"))


def test_stored_files_are_small_the_same_again_and_without_local_paths(study, runs, tmp_path):
    again = tmp_path / "again"
    main(["made", *map(str, reversed(runs)), "--results", str(again)])
    files = sorted(file for file in study.rglob("*") if file.is_file())
    assert len(files) == 4 * 4 + 1
    for file in files:
        assert file.read_bytes() == (again / "made" / file.relative_to(study)).read_bytes()
    folder = study / "PolyMNIST" / "DyMo" / "default" / "seed0"
    assert (folder / "outcomes.npz").stat().st_size < 8000
    text = (folder / "config.yaml").read_text()
    assert "root: mnist\n" in text and "data: data\n" in text and "outputs/PolyMNIST/imputer/best.ckpt" in text
    assert str(runs[0].parents[3]) not in text


def test_archives_depend_on_their_content_only():
    arrays = {"b": np.arange(3), "a": np.zeros((2, 2), bool)}
    assert npz(arrays) == npz(dict(reversed(arrays.items()))) != npz(arrays | {"a": np.ones((2, 2), bool)})


def test_paths_of_other_systems_are_cut_and_text_is_not():
    assert scrubbed(["C:\\data\\x.csv", "https://a.org/b/c", "1/2", None], {}) == [
        "x.csv",
        "https://a.org/b/c",
        "1/2",
        None,
    ]


@pytest.mark.parametrize("file", ["results.csv", "environment.json", "config.yaml", "outcomes.npz"])
def test_a_changed_or_deleted_file_is_named(study, file):
    path = study / "PolyMNIST" / "M3Care" / "default" / "seed1" / file
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(UserError, match=rf"M3Care/default/seed1/{file} differs"):
        check_files(study)
    path.unlink()
    with pytest.raises(UserError, match=rf"M3Care/default/seed1/{file} is absent"):
        check_files(study)
    path.write_bytes(content)
    (path.parent / "notes.txt").touch()
    with pytest.raises(UserError, match=r"seed1/notes.txt is not in manifest.json"):
        check_files(study)


def test_a_deleted_run_is_named(study):
    (run,) = (run for run in read_manifest(study) if "DyMo/default/seed1" in run)
    for file in (study / run).iterdir():
        file.unlink()
    with pytest.raises(UserError, match="the stored run PolyMNIST/DyMo/default/seed1 is absent"):
        check_files(study)


def test_outcomes_must_have_every_scenario_of_the_results(study):
    file = study / "PolyMNIST" / "M3Care" / "default" / "seed0" / "outcomes.npz"
    with np.load(file) as arrays:
        np.savez(file, **{key: arrays[key] for key in arrays if key != "predicted/none"})
    write_manifest(study)
    with pytest.raises(UserError, match=r"outcomes.npz of M3Care, seed 0, lacks none"), stored_runs(study):
        pass


def test_outcomes_must_give_the_accuracy_of_the_results(study):
    file = study / "PolyMNIST" / "M3Care" / "default" / "seed0" / "results.csv"
    frame = pd.read_csv(file, keep_default_na=False)
    frame.loc[(frame["metric"] == "accuracy") & (frame["scenario"] == "none"), "value"] = 0.99
    frame.to_csv(file, index=False)
    write_manifest(study)
    message = r"M3Care, seed 0, has accuracy 0.9900 under none, and its outcomes give"
    with pytest.raises(UserError, match=message), stored_runs(study):
        pass


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("environment.json", '{"git_commit": "abc123456789-dirty"}', "its code is 'abc123456789-dirty', no commit"),
        ("environment.json", '{"git_commit": "abc1234", "note": "in /data/private"}', "environment.json names this"),
        ("DONE", None, "no finished run"),
        ("predictions/none.npz", None, "none.npz is absent"),
    ],
)
def test_what_is_no_evidence_is_refused(tmp_path, file, content, message):
    run = write_committed_run(tmp_path / "runs", "M3Care", 0)
    (run / file).unlink()
    if content:
        (run / file).write_text(content)
    with pytest.raises(UserError, match=message):
        main(["made", str(run), "--results", str(tmp_path)])
    assert not (tmp_path / "made").exists()
