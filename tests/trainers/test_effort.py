"""What a run took: seconds over continued trainings, seconds of predictions, and the table of the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.trainers.report.runs import write_run
from trainers import effort
from trainers.callbacks import Effort
from trainers.loading import Run
from trainers.report.page import write_report
from utils.stopwatch import Stopwatch


def test_seconds_of_earlier_processes_count_and_unknown_ones_stay_unknown() -> None:
    first = Effort(is_continued=False)
    first.on_fit_start()
    assert first.watch is not None
    first.watch.start = first.watch.start[0] - 100, first.watch.start[1] - 7
    second = Effort(is_continued=True)
    second.load_state_dict(first.state_dict())
    second.on_fit_start()
    total = second.read()
    assert total is not None
    assert 100 <= total["seconds"] < 105 and 7 <= total["processor_seconds"] < 12
    older = Effort(is_continued=True)  # from a checkpoint without seconds
    older.on_fit_start()
    assert older.read() is None and older.state_dict() == {}
    assert 3 <= Stopwatch(seconds=3).read()["seconds"] < 4


def test_predictions_are_timed_without_the_data_and_for_the_first_thousand_rows(monkeypatch) -> None:
    """Half a second per batch of 400 rows: 1.5 s for 1200 rows are 1.25 s per 1000; reading takes hours."""
    now = [0.0]

    class Method:
        def __call__(self, batch: Any) -> None:
            now[0] += 0.5
            torch.rand(1)

    def batches():  # type: ignore[no-untyped-def]
        for _ in range(10):
            now[0] += 3600
            yield SimpleNamespace(target=torch.zeros(400))

    monkeypatch.setattr(effort, "device_clock", lambda: now[0])
    monkeypatch.setattr(effort.time, "process_time", lambda: 2 * now[0])
    before = torch.get_rng_state()
    seconds = effort.prediction_seconds(Method(), batches())  # type: ignore[arg-type]
    assert seconds == {"test_seconds_per_1000_rows": 1.25, "test_processor_seconds_per_1000_rows": 2.5}
    assert now[0] == 3 * 3600.5 and torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("undrawn")
def test_the_report_has_the_mean_cost_of_every_model_that_has_one(tmp_path: Path) -> None:
    runs = []
    for seed, seconds in enumerate((10.0, 14.0, None)):
        run = write_run(tmp_path, "M3Care", seed, scenarios=("none", "random_0.4"))
        cost = {"parameters": 1200, "trainable_parameters": 1000, "fit_seconds": seconds, "fit_parts": {}}
        cost |= {"test_seconds_per_1000_rows": 0.5, "test_scenario": "random_0.4"}
        (run / "environment.json").write_text(json.dumps({"device": f"cpu {min(seed, 1)}", "cost": cost}))
        runs.append(run)
    runs.append(write_run(tmp_path, "CMPT_x", 0, scenarios=("none", "random_0.4")))
    (runs[-1] / "environment.json").write_text("{}")  # of an older version
    result = write_report(runs, tmp_path / "report", title="t", metrics=["accuracy"])
    table = pd.read_csv(tmp_path / "report" / "costs.csv")
    (row,) = table.to_dict("records")
    assert (row["model"], row["runs"], row["parameters"], row["trainable_parameters"]) == ("M3Care", 3, 1200, 1000)
    assert row["fit_seconds"] == 12 and row["fit_seconds_sd"] == pytest.approx(np.sqrt(8))
    assert row["test_seconds_per_1000_rows"] == 0.5 and row["test_seconds_per_1000_rows_sd"] == 0
    assert row["device"] == "cpu 0; cpu 1" and np.isnan(row["fit_processor_seconds"])
    assert "cost.fit_seconds" not in result.html.read_text()


def test_every_training_behind_a_run_counts_once(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    aware = effort.unique_parts(Run(composed("model=DynamicTransformer", "model.consistency=0.5")))
    assert list(aware) == ["fit DynamicTransformer_consistent0.5", "impute MoPoE"]
    # A training that two models share, and two parts of a chain that are trained with other settings.
    listed = [
        ("fit A", "a", {"seconds": 1.0}),
        ("impute B", "b", {"seconds": 2.0}),
        ("impute B", "c", {"seconds": 4.0}),
    ]
    monkeypatch.setattr(effort, "fit_parts", lambda run: iter([*listed, *listed]))
    expected = {"fit A": {"seconds": 1.0}, "impute B": {"seconds": 2.0}, "impute B (2)": {"seconds": 4.0}}
    assert effort.unique_parts(None) == expected  # type: ignore[arg-type]
