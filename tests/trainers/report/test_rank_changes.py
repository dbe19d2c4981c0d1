"""Changes of a ranking between scenarios, against SciPy, the tests of two models, and simulated known changes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.trainers.report.runs import write_run
from trainers.report.inference import over_paired_runs_and_rows, over_runs_and_rows
from trainers.report.rank_changes import Scores, agreement, order_changes, ranks
from trainers.report.runs import FinishedRun, gather
from utils.errors import UserError

MODELS, SCENARIOS = ["M3Care", "DyMo", "DyMo/discard"], ["none", "random_0.2", "random_0.4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRun]:
    root = tmp_path_factory.mktemp("runs")
    names = itertools.product(("DyMo", "M3Care"), range(3))
    return gather([write_run(root, model, seed, scenarios=SCENARIOS) for model, seed in names])[0]


def test_ranks_and_changes_of_runs(runs: list[FinishedRun]) -> None:
    frame = pd.concat([run.frame for run in runs])
    scores = Scores.of_runs(runs, frame, "accuracy", MODELS, SCENARIOS)
    means = frame[frame.metric == "accuracy"].groupby(["scenario", "model"])["value"].mean()
    for scenario in SCENARIOS:
        expected = stats.rankdata([-means[scenario, model] for model in MODELS])
        assert ranks(scores)[scenario].tolist() == expected.tolist()
    for scenario, row in agreement(scores).iterrows():
        first, second = ([means[name, model] for model in MODELS] for name in ("none", scenario))
        assert row["tau"] == pytest.approx(stats.kendalltau(first, second).statistic)
        assert -1 <= row["low"] <= row["high"] <= 1
    changes = order_changes(scores)
    assert len(changes) == 2 * 3 and (changes["reference"] >= 0).all()
    for row in changes.itertuples():
        assert row.reference == pytest.approx(means["none", row.model] - means["none", row.other])
        assert row.change == pytest.approx(
            means[row.scenario, row.model] - means[row.scenario, row.other] - row.reference
        )
        a, b = (scores.values[m, row.scenario] - scores.values[m, "none"] for m in (row.model, row.other))
        x, y = (scores.draws[m, row.scenario] - scores.draws[m, "none"] for m in (row.model, row.other))
        are_same = "M3Care" not in (row.model, row.other)
        test = over_paired_runs_and_rows(a - b, x - y) if are_same else over_runs_and_rows(a, b, x, y)
        assert (row.low, row.high) == pytest.approx(test.interval()) and row.p == pytest.approx(test.p)
        assert row.p_holm >= row.p


def test_a_ranking_needs_repeated_runs(runs: list[FinishedRun]) -> None:
    frame = pd.concat([run.frame for run in runs if run.seed == 0])
    with pytest.raises(UserError, match="M3Care has 1 run under none"):
        Scores.of_runs(runs, frame, "accuracy", MODELS, SCENARIOS)


def test_runs_have_to_match(runs: list[FinishedRun]) -> None:
    frame = pd.concat([run.frame for run in runs])
    is_lost = (frame["model"] == "DyMo") & (frame["scenario"] == "none") & (frame["seed"] == 0)
    with pytest.raises(UserError, match=r"DyMo has other runs under random_0.2 than under none"):
        Scores.of_runs(runs, frame[~is_lost], "accuracy", MODELS, SCENARIOS)
    with pytest.raises(UserError, match="of PolyMNIST, Other: a ranking is of one data set"):
        Scores.of_runs(runs, pd.concat([frame, frame.assign(dataset="Other")]), "accuracy", MODELS, SCENARIOS)


def test_models_with_the_same_networks_are_resampled_together() -> None:
    """The second way of use is always 0.01 better: with the same runs in each resample, no ranking differs."""
    rng = np.random.default_rng(0)
    values = {(m, s): rng.random(4) for m in ("a",) for s in ("first", "second")}
    values |= {("b", s): values["a", s] + 0.01 for s in ("first", "second")}
    draws = {key: np.repeat(value[:, None], 100, axis=1) for key, value in values.items()}
    scores = Scores(["a", "b"], ["first", "second"], values, draws, {"a": [Path("x")], "b": [Path("x")]})
    assert agreement(scores).loc["second"].tolist() == [1.0, 1.0, 1.0]
    apart = Scores(["a", "b"], ["first", "second"], values, draws, {"a": [Path("x")], "b": [Path("y")]})
    assert agreement(apart).loc["second", "low"] == -1.0


def simulated(loss: float, seed: int, rows: int = 400, number: int = 4) -> Scores:
    """Two models that lose 0.1 under the second scenario, the first one ``loss`` more; rows differ in difficulty."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=200) / rows
    difficulty = rng.normal(size=rows)
    values, draws = {}, {}
    for model, extra in (("a", loss), ("b", 0.0)):
        run = rng.normal(0, 0.1, (number, 1))
        for scenario, mean in (("first", 0.8), ("second", 0.7 - extra)):
            threshold = stats.norm.ppf(mean) * np.sqrt(1 + 0.3**2 + 0.1**2)
            right = threshold + run + difficulty + rng.normal(0, 0.3, (number, rows)) > 0
            values[model, scenario], draws[model, scenario] = right.mean(1), right @ counts.T
    return Scores(["a", "b"], ["first", "second"], values, draws, {"a": [Path("a")], "b": [Path("b")]})


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_intervals_of_a_change_cover_it(loss: float) -> None:
    studies = [order_changes(simulated(loss, seed)).iloc[0] for seed in range(120)]
    truth = [-loss if study["model"] == "a" else loss for study in studies]
    covered = sum(study["low"] <= value <= study["high"] for study, value in zip(studies, truth))
    assert covered / 120 >= 0.9  # 0.95 less 2.5 standard errors; the interval may be wider
    if loss == 0:
        assert sum(study["p"] < 0.05 for study in studies) / 120 <= 0.1
