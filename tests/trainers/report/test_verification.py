"""An edited results.csv of a run without checksums is noticed by its predictions."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from datasets.missingness.base import slug
from tests.trainers.report.runs import write_run
from trainers.report.runs import gather
from trainers.report.verification import verify_results
from utils.errors import UserError

SCENARIOS = ("none", "random_0.4")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A run of an older version: its marker has no checksums; accuracy, nll and a user's metric."""
    run = write_run(tmp_path, "M3Care", 0, scenarios=SCENARIOS)
    frame = pd.read_csv(run / "results.csv", keep_default_na=False)
    rows = [frame[frame["metric"] == "accuracy"], frame[frame["metric"] == "ece"].assign(metric="mine")]
    nll = []
    for scenario in SCENARIOS:
        arrays = np.load(run / "predictions" / f"{slug(scenario)}.npz")
        probabilities = np.exp(arrays["logits"]) / np.exp(arrays["logits"]).sum(1, keepdims=True)
        nll.append(log_loss(arrays["target"], probabilities, labels=range(10)))
    rows.append(rows[0].assign(metric="nll", value=nll))
    pd.concat(rows).to_csv(run / "results.csv", index=False)
    (run / "stages").mkdir()
    (run / "stages" / "test.json").write_text(json.dumps({"settings": {}}))
    return run


def edit(run: Path, metric: str, value: float) -> float:
    """Write another value of a metric under ``none``; the one before."""
    frame = pd.read_csv(run / "results.csv", keep_default_na=False)
    row = (frame["metric"] == metric) & (frame["scenario"] == "none")
    before = float(frame.loc[row, "value"].iloc[0])
    frame.loc[row, "value"] = value
    frame.to_csv(run / "results.csv", index=False)
    return before


def test_results_that_are_those_of_the_predictions_are_left_alone(older, caplog) -> None:
    edit(older, "mine", 7.0)  # of a user's metric nothing is known
    runs, _ = gather([older])
    before = runs[0].frame.copy()
    verify_results(runs)
    pd.testing.assert_frame_equal(runs[0].frame, before)
    assert not caplog.records


def test_an_edited_accuracy_is_refused_and_named(older) -> None:
    before = edit(older, "accuracy", 0.99)
    runs, _ = gather([older])
    message = f"accuracy of M3Care under none is 0.9900, its predictions give {before:.4f}"
    with pytest.raises(UserError, match=message):
        verify_results(runs)


def test_what_the_predictions_give_is_reported_in_place_of_another_value(older, caplog) -> None:
    before = edit(older, "nll", 0.01)
    runs, _ = gather([older])
    with caplog.at_level(logging.WARNING):
        verify_results(runs)
    assert f"nll of M3Care under none is 0.0100, its predictions give {before:.4f};" in caplog.text
    frame = runs[0].frame.set_index(["metric", "scenario"])["value"]
    assert frame["nll", "none"] == pytest.approx(before, abs=1e-5)
