"""Measures of a report, against enumeration, scikit-learn and SciPy."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, auc, f1_score, roc_auc_score

from datasets.missingness.whole import modality_orders, subsets, visited_subsets
from tests.trainers.report.runs import CLASSES, NAMES, write_run
from trainers.report.measure_tables import measures_of, orders_tested, pattern_table
from trainers.report.measures import (
    Subset,
    accuracy_by_pattern,
    area_under_curve,
    equity,
    oracle_gap,
    sampled_shapley_values,
    score_without_input,
    shapley_values,
)
from trainers.report.page import write_report
from trainers.report.runs import gather

GLOVES = {  # modalities 0 and 1 are left gloves, 2 the right one: a pair is worth 1 (textbook values 1/6, 1/6, 2/3)
    Subset(s): float(2 in s and len(s) > 1) for size in range(4) for s in itertools.combinations(range(3), size)
}


def game(m: int, seed: int) -> dict[Subset, float]:
    rng = np.random.default_rng(seed)
    return {Subset(s): float(rng.normal()) for size in range(m + 1) for s in itertools.combinations(range(m), size)}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8, unique_by=lambda p: round(p[0], 6))
)
def test_area_is_the_trapezoidal_rule_over_the_range(points: list[tuple[float, float]]) -> None:
    rates, scores = np.array(points).T
    order = np.argsort(rates)
    expected = auc(rates[order], scores[order]) / (rates.max() - rates.min())
    assert area_under_curve(rates, scores) == pytest.approx(expected, abs=1e-9)
    assert area_under_curve(rates, np.full(len(rates), 0.7)) == pytest.approx(0.7)


def test_shapley_values_are_the_mean_gains_over_all_orders() -> None:
    np.testing.assert_allclose(shapley_values(GLOVES, 3), [1 / 6, 1 / 6, 2 / 3])
    for m in (2, 3, 4, 5):
        value = game(m, m)
        gains = np.zeros(m)
        for order in itertools.permutations(range(m)):
            for position, modality in enumerate(order):
                before = Subset(order[:position])
                gains[modality] += value[before | {modality}] - value[before]
        exact = shapley_values(value, m)
        np.testing.assert_allclose(exact, gains / math.factorial(m), atol=1e-12)
        assert exact.sum() == pytest.approx(value[Subset(range(m))] - value[Subset()])
        everything, _ = sampled_shapley_values(value.__getitem__, itertools.permutations(range(m)))
        np.testing.assert_allclose(everything, exact, atol=1e-12)


def test_sampled_values_are_within_their_errors() -> None:
    value, k = game(8, 0), 400
    estimate, error = sampled_shapley_values(value.__getitem__, itertools.islice(modality_orders(8), k))
    exact = shapley_values(value, 8)
    assert (np.abs(estimate - exact) < 5 * error).all() and (error > 0).all()
    # Random gains of scale 2 (two normal scores each), so that the errors are about sqrt(2 / 400).
    assert (error < 0.15).all() and estimate.sum() == pytest.approx(exact.sum())
    same, zero = sampled_shapley_values(lambda subset: float(len(subset)), [(0, 1, 2), (2, 1, 0)])
    assert same.tolist() == [1, 1, 1] and zero.tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_equity_is_the_evenness_of_positive_contributions(values: list[float]) -> None:
    positive = np.clip(values, 0, None)
    if positive.sum() > 0:
        assert equity(values) == pytest.approx(stats.entropy(positive, base=len(values)), abs=1e-9)
    else:
        assert math.isnan(equity(values))


def test_equity_of_equal_and_of_single_contributions() -> None:
    assert equity([0.2, 0.2, 0.2]) == pytest.approx(1) and equity([0.4, 0, -0.1]) == 0
    assert math.isnan(equity([0.4])) and math.isnan(equity([0, -0.1]))


def test_the_oracle_is_right_where_any_subset_is() -> None:
    right = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [1, 1, 0, 0, 0]], dtype=bool)
    assert oracle_gap(right[0], right) == pytest.approx(3 / 5 - 2 / 5)
    assert oracle_gap(right[0], right[:1]) == 0


def test_accuracy_by_pattern_groups_rows() -> None:
    rng = np.random.default_rng(0)
    patterns, right = rng.choice(["a", "b", "c"], 200, p=[0.2, 0.5, 0.3]), rng.random(200) < 0.7
    groups = pd.Series(right).groupby(patterns)
    table = accuracy_by_pattern(list(patterns), right)
    assert list(table) == ["b", "c", "a"] and sum(n for _, n in table.values()) == 200
    for name, (accuracy, n) in table.items():
        assert (accuracy, n) == (pytest.approx(groups.mean()[name]), groups.size()[name])


def test_the_score_without_input_is_that_of_class_frequencies() -> None:
    target = np.array([0] * 5 + [1] * 3 + [2] * 2)
    prior = DummyClassifier(strategy="prior").fit(np.zeros((10, 1)), target)
    predicted = prior.predict(np.zeros((10, 1)))
    assert score_without_input(target, 3, "accuracy") == pytest.approx(accuracy_score(target, predicted))
    assert score_without_input(target, 3, "auroc") == pytest.approx(0.5)
    assert score_without_input(target, 3, "f1_macro") == pytest.approx(f1_score(target, predicted, average="macro"))
    labels = np.array([[1, 0], [1, 1], [0, 0], [1, -1]], dtype=np.float32)
    assert score_without_input(labels, 2, "accuracy") == pytest.approx((3 + 2) / 7)
    scores = np.tile([0.75, 1 / 3], (4, 1))
    assert score_without_input(labels, 2, "auroc") == pytest.approx(
        np.mean([roc_auc_score(labels[:, 0], scores[:, 0]), roc_auc_score(labels[:3, 1], scores[:3, 1])])
    )


def test_orders_are_the_same_in_every_call_and_their_subsets_can_be_tested() -> None:
    first, again = (list(itertools.islice(modality_orders(7), 6)) for _ in range(2))
    assert first == again and len(set(first)) == 6 and all(sorted(order) == list(range(7)) for order in first)
    scenarios = visited_subsets(7, 6)
    assert scenarios[0].name == "none" and len(scenarios) == len({s.name for s in scenarios}) < 2**7 - 1
    observed = {Subset(range(7)) - set(s.always_missing) for s in scenarios}
    assert observed == {Subset(order[:size]) for order in first for size in range(1, 8)}
    assert orders_tested(dict.fromkeys(observed, 0.0), 7)[:6] == first


@pytest.fixture
def made(tmp_path: Path) -> list[Path]:
    """Two seeds of two models under every subset of three modalities, and curves."""
    scenarios = [*(s.name for s in subsets(3)), "random_0.2", "random_0.4"]
    runs = [write_run(tmp_path, model, seed, scenarios=scenarios) for model in ("M3Care", "DyMo") for seed in (0, 1)]
    for run in runs:
        (run / "masks").mkdir()
        (run / "masks" / "none.json").write_text(json.dumps({"modalities": NAMES}))
    return runs


def test_measures_follow_from_the_results(made: list[Path]) -> None:
    runs, _ = gather(made)
    frame = pd.concat([run.frame for run in runs], ignore_index=True)
    tables = {m.name: m.values for m in measures_of(runs, frame, "accuracy", {"PolyMNIST": NAMES})}
    assert sorted(tables) == ["area", "contribution", "equity", "oracle_gap"]
    scores = frame[(frame["model"] == "M3Care") & (frame["metric"] == "accuracy") & (frame["seed"] == 1)]
    scores = scores.set_index("scenario")
    area = tables["area"].set_index(["model", "seed"]).loc[("M3Care", 1)]
    curve = scores.loc[["none", "random_0.2", "random_0.4"]]
    points = sorted(zip([0, *curve["missing_rate"].iloc[1:]], curve["value"]))
    expected = auc(*np.array(points).T) / points[-1][0]
    assert area["value"] == pytest.approx(expected) and area["metric"] == "accuracy"
    value = {Subset(range(3)) - set(s.always_missing): scores["value"][s.name] for s in subsets(3)}
    with np.load(made[1] / "predictions" / "none.npz") as arrays:
        value[Subset()] = np.bincount(arrays["target"], minlength=CLASSES).max() / 60
    part = tables["contribution"]
    part = part[(part["model"] == "M3Care") & (part["seed"] == 1)]
    assert list(part["scenario"]) == list(NAMES)
    np.testing.assert_allclose(part["value"], shapley_values(value, 3))
    gaps = tables["oracle_gap"].set_index(["model", "seed", "scenario"])["value"]
    right = []
    for scenario in subsets(3):
        with np.load(made[1] / "predictions" / f"{scenario.name}.npz") as arrays:
            right.append((arrays["logits"].argmax(1) == arrays["target"])[np.argsort(arrays["index"])])
    assert gaps["M3Care", 1, "none"] == pytest.approx(np.any(right, 0).mean() - right[0].mean())
    oracle = frame[(frame["metric"] == "accuracy") & (frame["seed"] == 0) & (frame["scenario"] == "whole_2")]
    oracle = oracle.set_index("model")["value"]
    assert gaps["DyMo", 0, "whole_2"] == pytest.approx(oracle["DyMo/oracle_subset"] - oracle["DyMo"])
    # Without all subsets there are no contributions.
    few = frame[frame["scenario"] != "whole_01"]
    assert {m.name for m in measures_of(runs, few, "accuracy", {"PolyMNIST": NAMES})} == {"area", "oracle_gap"}
    assert not {m.name for m in measures_of(runs, frame, "ece", {"PolyMNIST": NAMES})} & {"contribution", "equity"}


def test_patterns_count_every_row_of_every_seed(made: list[Path]) -> None:
    runs, _ = gather(made)
    table = pattern_table(runs, {"PolyMNIST": NAMES})
    part = table[(table["model"] == "M3Care") & (table["scenario"] == "random_0.4")].set_index("pattern")
    assert part["n"].sum() == 2 * 60 and part["n"].is_monotonic_decreasing
    right, rows = 0, 0
    for run in made[:2]:
        with np.load(run / "predictions" / "random_0.4.npz") as arrays:
            of_pattern = (arrays["missing"] == [False, True, True]).all(1)
            right += (arrays["logits"].argmax(1) == arrays["target"])[of_pattern].sum()
            rows += of_pattern.sum()
    assert part.loc["mnist_b, text", "n"] == rows
    assert part.loc["mnist_b, text", "accuracy"] == pytest.approx(right / rows)
    assert "complete" in part.index


def test_tables_of_which_some_cells_are_missing_are_a_pattern_of_their_own(made: list[Path]) -> None:
    cells = np.zeros((60, 4), dtype=bool)
    with np.load(made[0] / "predictions" / "random_0.4.npz") as arrays:
        missing = arrays["missing"][np.argsort(arrays["index"])]
    rows = np.flatnonzero(missing[:, 2])
    cells[rows], cells[rows[::2], 0] = True, False
    np.savez(made[0] / "masks" / "random_0.4.npz", missing=missing, cells_text=cells)
    (made[0] / "masks" / "random_0.4.json").write_text(json.dumps({"modalities": NAMES}))
    runs, _ = gather(made[:1])
    table = pattern_table(runs, {"PolyMNIST": NAMES})
    table = table[table["scenario"] == "random_0.4"]
    partly = table[table["pattern"].str.contains("text partly")]
    assert partly["n"].sum() == len(rows[::2]) and table["n"].sum() == 60


@pytest.mark.usefixtures("undrawn")
def test_a_report_has_the_measures(made: list[Path], tmp_path: Path) -> None:
    report = write_report(made, tmp_path / "report", title="t", metrics=["accuracy"])
    page = report.html.read_text()
    for heading in ("Area under the degradation curve, accuracy (%)", "Contributions of modalities", "Modality equity"):
        assert heading in page
    assert "Gap to the oracle subset" in page and "Accuracy per pattern" in page
    table = pd.read_csv(tmp_path / "report" / "measures.csv")
    assert set(table["measure"]) == {"area", "contribution", "equity", "oracle_gap"}
    assert len(pd.read_csv(tmp_path / "report" / "patterns.csv")) > 10
    # The page shows percent.
    gap = table[(table["measure"] == "oracle_gap") & (table["model"] == "M3Care")].iloc[0]
    assert f"{100 * gap['mean']:.2f} ± {100 * gap['error']:.2f}" in page
