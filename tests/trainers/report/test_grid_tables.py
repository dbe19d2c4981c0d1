"""Train-by-test matrices of a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.trainers.report.runs import write_run
from trainers.report.grid_tables import heat_map, matrix_html, train_test_matrices
from trainers.report.page import write_report
from trainers.report.runs import COLUMNS

TRAIN, TEST = ("random_0.4", "none", "whole_1"), ("none", "random_0.4")


def results(methods: tuple[str, ...] = ("A",), trainings: tuple[str, ...] = TRAIN) -> pd.DataFrame:
    """Score 0.9 on complete data, less by 0.1 per position of the two scenarios, and 0.02 more with seed 1."""
    rows = [
        (
            "D",
            f"{method} [train {train}]",
            seed,
            test,
            "accuracy",
            0.9 - 0.1 * i - 0.2 * j + 0.02 * seed,
            9,
            train,
            method,
        )
        for method in methods
        for i, train in enumerate(trainings)
        for j, test in enumerate(TEST)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "train", "method"]).assign(fold=-1, missing_rate=0.25)


def test_a_matrix_has_a_row_per_training_and_a_column_per_test_scenario() -> None:
    matrices = train_test_matrices(results(("A", "B")))
    assert list(matrices) == [("D", "A"), ("D", "B")]
    matrix = matrices["D", "A"]
    assert list(matrix["model"].unique()) == ["none", "random_0.4", "whole_1"]  # complete first, then as in the test
    cells = matrix.pivot(index="model", columns="scenario", values="mean")
    np.testing.assert_allclose(cells.loc["random_0.4"], [0.91, 0.71])
    np.testing.assert_allclose(cells.loc["whole_1"], [0.71, 0.51])
    assert matrix["sd"].iloc[0] == pytest.approx(np.std([0.8, 0.82], ddof=1)) and (matrix["n_seeds"] == 2).all()
    (axes, _) = heat_map(matrix, "accuracy", "A", ("image", "table")).axes
    np.testing.assert_allclose(
        axes.images[0].get_array(), 100 * cells.loc[["none", "random_0.4", "whole_1"], list(TEST)]
    )
    assert [t.get_text() for t in axes.get_yticklabels()] == ["complete", "40 % of modalities", "table missing"]
    assert '<th scope="row">table missing</th>' in matrix_html(matrix, "accuracy", ("image", "table"))


def test_no_matrix_without_two_scenarios_on_both_sides_or_with_two_runs_of_one() -> None:
    assert not train_test_matrices(results(trainings=("none",)))
    frame = results()
    assert not train_test_matrices(frame[frame["scenario"] == "none"])
    assert not train_test_matrices(pd.concat([frame, frame]))
    assert not train_test_matrices(results(("A/discard",)))


def test_a_report_shows_the_matrix(tmp_path: Path) -> None:
    runs = []
    for train in ("none", "random_0.4"):
        run = write_run(tmp_path, "M3Care", 0, name=f"grid_{train}", scenarios=TEST)
        frame = pd.read_csv(run / "results.csv", keep_default_na=False)
        frame.assign(train=train, fold="").to_csv(run / "results.csv", index=False)
        runs.append(run)
    report = write_report(runs, tmp_path / "report", title="t", metrics=["accuracy"])
    page = report.html.read_text()
    assert "Trained and tested under several scenarios" in page and "PolyMNIST, M3Care, accuracy (%)" in page
    table = pd.read_csv(tmp_path / "report" / "grid.csv", keep_default_na=False)
    assert set(table["train"]) == {"none", "random_0.4"} and set(table["method"]) == {"M3Care"}
    assert (tmp_path / "report" / "figures" / "grid_PolyMNIST_M3Care.png").is_file()
    text = (tmp_path / "report" / "grid_accuracy.md").read_text()
    assert "## PolyMNIST, M3Care, rows: training, accuracy (%)" in text
