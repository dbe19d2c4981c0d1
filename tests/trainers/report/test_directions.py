"""Metrics of which lower is better: marks, tests and ranks; metrics of which nobody knows."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.trainers.report.runs import write_run
from trainers.report.directions import directions
from trainers.report.page import write_report
from utils.errors import UserError

SCENARIOS = ("none", "whole_0", "whole_1", "whole_2", "random_0.4")
LEVEL = {"DyMo": 0.2, "M3Care": 0.5, "CMPT_x": 0.3}
TORCHMETRICS = "torchmetrics.classification.MulticlassHingeLoss"


def runs_with(root: Path, metric: str, about: dict[str, object]) -> list[Path]:
    """Two runs of each model with one metric, at the level of the model in every scenario."""
    runs = [write_run(root, model, seed, scenarios=SCENARIOS, n=20) for model in LEVEL for seed in range(2)]
    for run in runs:
        frame = pd.read_csv(run / "results.csv", keep_default_na=False)
        frame = frame[(frame["metric"] == "ece") & ~frame["model"].str.contains("/")]
        frame["value"] = frame["model"].map(LEVEL) + 0.01 * frame["seed"]
        frame.assign(metric=metric).to_csv(run / "results.csv", index=False)
        (run / "environment.json").write_text(json.dumps(about))
    return runs


@pytest.mark.parametrize(
    ("metric", "about", "order"),
    [
        ("ece", {}, ["DyMo", "CMPT_x", "M3Care"]),
        ("nll", {}, ["DyMo", "CMPT_x", "M3Care"]),
        ("brier", {}, ["DyMo", "CMPT_x", "M3Care"]),
        ("loss", {"metrics": {"loss": "lower"}}, ["DyMo", "CMPT_x", "M3Care"]),
        ("gain", {"metrics": {"gain": "higher"}}, ["M3Care", "CMPT_x", "DyMo"]),
    ],
)
def test_marks_tests_and_ranks_follow_the_direction(tmp_path, monkeypatch, metric, about, order) -> None:
    monkeypatch.setattr("trainers.report.page.draw_figures", lambda *_: {})
    result = write_report(runs_with(tmp_path, metric, about), tmp_path / "report", title="t", primary=metric)
    assert set(result.tests["best"]) == {order[0]} and set(result.tests["model"]) == set(order[1:])
    is_lower = order[0] == "DyMo"
    assert ((result.tests["difference"] < 0) == is_lower).all()
    assert (result.tests["low"] < result.tests["high"]).all()
    assert result.ranks is not None and list(result.ranks.table["model"]) == order
    assert result.ranks.table["iqm"].tolist() == sorted(result.ranks.table["iqm"], reverse=not is_lower)
    marks = {model: result.tables["PolyMNIST", metric].loc[model, "none"][-1] for model in order}
    assert marks == dict(zip(order, "*+ "))
    assert (f"for {metric}, lower is better" in result.html.read_text()) == is_lower
    assert set(result.summary["direction"]) == {"lower" if is_lower else "higher"}


@pytest.mark.parametrize(("about", "message"), [({"metrics": {"x": ""}}, "whether higher"), ({}, "whether higher")])
def test_a_primary_metric_without_direction_is_refused(tmp_path, about, message) -> None:
    with pytest.raises(UserError, match=message):
        write_report(runs_with(tmp_path, "x", about), tmp_path / "report", title="t", primary="x")


def test_one_name_with_two_directions_is_refused(tmp_path) -> None:
    runs = runs_with(tmp_path, "x", {"metrics": {"x": "lower"}})
    (runs[-1] / "environment.json").write_text(json.dumps({"metrics": {"x": "higher"}}))
    with pytest.raises(UserError, match="metric 'x' is better higher in some runs"):
        write_report(runs, tmp_path / "report", title="t", primary="x")


@pytest.mark.usefixtures("undrawn")
def test_runs_that_do_not_say_it_follow_those_that_do(tmp_path) -> None:
    runs = runs_with(tmp_path, "x", {"metrics": {"x": "lower"}})
    (runs[-1] / "environment.json").write_text("{}")
    result = write_report(runs, tmp_path / "report", title="t", primary="x")
    assert set(result.tests["best"]) == {"DyMo"}


def test_older_runs_with_a_class_of_torchmetrics_say_it_by_their_configuration() -> None:
    config = {"metrics": {"hinge": {"_target_": TORCHMETRICS}, "own": {"_target_": "my.Metric"}}}
    expected = {"accuracy": "higher", "ece": "lower", "hinge": "lower", "own": "", "iterations": ""}
    assert directions(expected, "", config) == expected
    assert directions(["hinge"], '{"metrics": {"hinge": "higher"}}', config) == {"hinge": "higher"}
