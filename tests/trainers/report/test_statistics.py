"""Comparisons of models in a report, and the bootstrap, against SciPy and by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from tests.trainers.report.runs import SCENARIOS, write_run
from trainers.report import bootstrap
from trainers.report import page as report
from trainers.report.runs import COLUMNS, gather
from trainers.report.statistics import compare, mcnemar
from trainers.report.tables import print_table
from utils.metrics import classification_metrics, metric_names


def outcomes(runs: list[Path], model: str, scenario: str) -> np.ndarray:
    """(seeds, N) bool, whether a prediction is right, rows in order."""
    files = [np.load(run / "predictions" / f"{scenario}.npz") for run in runs if f"/{model}/" in str(run)]
    return np.stack([(f["logits"].argmax(1) == f["target"])[np.argsort(f["index"])] for f in files])


def test_tests_of_a_report_have_runs_and_rows(made, tmp_path):
    result, runs = made
    row = result.tests.set_index(["scenario", "model"]).loc[("random_0.4", "M3Care")]
    # The rows of three seeds are the same 60 test rows: no test counts them thrice.
    assert row["best"] == "DyMo" and row["n_runs"] == 3 and row["n_rows"] == 60 and row["same_masks"]
    assert (row["test"], row["unit"]) == ("runs and rows", "run and row")
    right = [outcomes(runs, model, "random_0.4") for model in ("DyMo", "M3Care")]
    # Covariances of the means over rows by their formula, without resampling.
    pair = np.concatenate(right).astype(float)
    covariance = np.cov(pair, bias=True) / 60
    shared = (
        sum(covariance[part, part].sum() - np.trace(covariance[part, part]) for part in (slice(3), slice(3, 6))) / 6
    )
    shared = max(shared - 2 * covariance[:3, 3:].mean(), 0)
    of_runs = [part.mean(1).var(ddof=1) / 3 for part in right]
    error = (sum(of_runs) + shared) ** 0.5
    df = error**4 / sum(part**2 / 2 for part in of_runs)
    difference = right[0].mean() - right[1].mean()
    assert row["difference"] == pytest.approx(difference)
    half = stats.t.ppf(0.975, df) * error
    assert (row["low"], row["high"]) == pytest.approx((difference - half, difference + half), abs=0.1 * half)
    assert row["p"] == pytest.approx(2 * stats.t.sf(difference / error, df), rel=0.2)
    # Two ways of using the same runs are paired run by run.
    row = result.tests.set_index(["scenario", "model"]).loc[("random_global_0.4", "DyMo/discard")]
    ways = [
        np.load(r / "predictions" / way / "random_global_0.4.npz")
        for r in runs
        if "/DyMo/" in str(r)
        for way in ("", "discard")
    ]
    accuracy = np.array([(way["logits"].argmax(1) == way["target"]).mean() for way in ways]).reshape(3, 2)
    paired = stats.ttest_rel(*accuracy.T)
    assert row["test"] == "same runs and rows" and row["high"] - row["low"] >= np.diff(paired.confidence_interval())
    one = report.write_report(
        [run for run in runs if run.name == "seed1"], tmp_path / "one", title="t", metrics=["ece"]
    ).tests
    row = one.set_index(["scenario", "model"]).loc[("random_0.4", "M3Care")]
    first, second = (right[0][1] & ~right[1][1]).sum(), (~right[0][1] & right[1][1]).sum()
    assert (row["test"], row["unit"], row["n_rows"], row["n_runs"]) == ("McNemar", "row", 60, 1)
    assert (row["best_only_right"], row["model_only_right"]) == (first, second)
    assert row["p"] == pytest.approx(stats.binomtest(int(first), int(first + second)).pvalue)
    # By the normal approximation.
    error = (right[0][1].astype(float) - right[1][1]).std() / 60**0.5
    assert row["low"] == pytest.approx(row["difference"] - 1.96 * error, abs=0.015)
    assert row["high"] == pytest.approx(row["difference"] + 1.96 * error, abs=0.015)


def test_p_is_adjusted_for_all_comparisons_of_a_data_set(made):
    tests = made[0].tests.dropna(subset="p")
    expected = multipletests(tests["p"], method="holm")[1]
    np.testing.assert_allclose(tests["p_holm"], expected)
    assert (tests["p_holm"] >= tests["p"]).all() and (tests["p_holm"] > tests["p"]).any()


def test_runs_without_predictions_have_the_test_over_runs(tmp_path):
    runs = [write_run(tmp_path, model, seed) for model in ("DyMo", "M3Care") for seed in range(3)]
    for run in runs:
        shutil.rmtree(run / "predictions")
    gathered, _ = gather(runs)
    frame = pd.concat(run.frame for run in gathered)
    row = compare(gathered, frame, "accuracy").set_index(["scenario", "model"]).loc[("random_0.4", "M3Care")]
    values = frame[(frame["scenario"] == "random_0.4") & (frame["metric"] == "accuracy")].groupby("model")["value"]
    expected = stats.ttest_ind(values.get_group("DyMo"), values.get_group("M3Care"), equal_var=False)
    assert (row["test"], row["unit"]) == ("Welch", "run") and row["p"] == pytest.approx(expected.pvalue)


def test_folds_have_the_corrected_test(tmp_path):
    """With the number of folds of the configuration, not of the runs that are there."""
    runs = []
    for model, values in {"A": (0.9, 0.8, 0.85), "B": (0.85, 0.78, 0.86)}.items():
        for fold, value in enumerate(values):
            runs.append(tmp_path / "D" / model / "default" / f"seed0_fold{fold}")
            runs[-1].mkdir(parents=True)
            rows = [("D", model, 0, "none", "accuracy", value, 60, fold)]
            pd.DataFrame(rows, columns=[*COLUMNS, "fold"]).to_csv(runs[-1] / "results.csv", index=False)
            (runs[-1] / "config.yaml").write_text("dataset: {folds: 5}\n")
            (runs[-1] / "DONE").touch()
    gathered, _ = gather(runs)
    (row,) = compare(gathered, pd.concat(run.frame for run in gathered), "accuracy").to_dict("records")
    difference = np.array([0.05, 0.02, -0.01])
    error = ((1 / 3 + 1 / 4) * difference.var(ddof=1)) ** 0.5
    assert (row["test"], row["unit"], row["n_runs"]) == ("corrected t", "fold", 3)
    assert row["p"] == pytest.approx(2 * stats.t.sf(difference.mean() / error, 2))


def test_an_oracle_is_listed_with_its_dagger_and_never_tested(made):
    tests = made[0].tests
    oracles = tests[tests["model"] == "DyMo/oracle_subset†"]
    assert len(oracles) == len(SCENARIOS) and oracles["difference"].notna().all()
    assert oracles[["p", "p_holm", "low", "high", "unit", "test"]].isna().all(axis=None)
    assert "DyMo/oracle_subset" not in {*tests["best"], *tests["model"]}
    assert "DyMo/oracle_subset†" in print_table(made[0].summary, "accuracy")


def test_mcnemar_is_of_accuracy_alone(tmp_path):
    """Ranking and decisions disagree: A orders all rows rightly but says class 0 of all, B decides better."""
    target = np.arange(60) % 2
    scores = {"A": np.linspace(-2, -1, 60)[np.argsort(np.argsort(target, kind="stable"))], "B": target - 0.5}
    scores["B"][:6] *= -1
    metrics = {"A": (0.5, 1.0), "B": (0.9, roc_auc_score(target, scores["B"]))}
    runs = []
    for model, score in scores.items():
        runs.append(tmp_path / "D" / model / "default" / "seed0")
        (runs[-1] / "predictions").mkdir(parents=True)
        rows = [("D", model, 0, "none", name, v, 60) for name, v in zip(("accuracy", "auroc"), metrics[model])]
        pd.DataFrame(rows, columns=COLUMNS).to_csv(runs[-1] / "results.csv", index=False)
        arrays = {"index": np.arange(60), "target": target, "missing": np.zeros((60, 2), bool)}
        np.savez(runs[-1] / "predictions" / "none.npz", logits=np.stack([-score / 2, score / 2], 1), **arrays)
        (runs[-1] / "DONE").touch()
    for primary, best in (("accuracy", "B"), ("auroc", "A")):
        (row,) = report.write_report(
            runs, tmp_path / primary, title="t", metrics=[primary], primary=primary
        ).tests.to_dict("records")
        assert row["best"] == best and row["unit"] == "row"
        if primary == "accuracy":
            assert row["test"] == "McNemar" and row["p"] == mcnemar(27, 3)
        else:
            assert row["test"] == "bootstrap" and row["low"] < row["difference"] < row["high"]
            assert 0 < row["p"] < 0.05


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_resampled_metrics_are_those_of_the_resampled_rows(task, monkeypatch):
    """Against the metrics themselves on repeated rows, with ties, an absent class and unlabelled cells."""
    monkeypatch.setattr(bootstrap, "DRAWS", 6)
    rng = np.random.default_rng(4)
    classes = 2 if task == "binary" else 4
    logits, target = rng.normal(size=(40, classes)).round(1).astype(np.float32), rng.integers(classes - 1, size=40)
    logits += np.arange(classes, dtype=np.float32) / 1024  # no tie within a row
    if task == "binary":
        target = rng.integers(2, size=40)
    if task == "multilabel":
        target = rng.integers(-1, 2, size=(40, classes)).astype(np.float32)
        target[:3] = -1
    counts = np.concatenate(list(bootstrap.row_counts(40)))
    assert counts.shape == (6, 40) and (counts.sum(1) == 40).all()
    for name in metric_names(task) if task == "multilabel" else bootstrap.OF_CLASSES:
        values = bootstrap.resampled({"logits": logits, "target": target}, name)
        for value, count in zip(values, counts):
            rows = np.repeat(np.arange(40), count.astype(int))
            metrics = classification_metrics(task, classes, [name])
            metrics.update(torch.from_numpy(logits[rows]), torch.from_numpy(target[rows]))
            assert value == pytest.approx(float(metrics.compute()[name]), abs=1e-5, nan_ok=True), name
    assert bootstrap.resampled({"logits": logits, "target": target}, "accepted_share") is None


@pytest.mark.parametrize("rows", [3, 16_000, 17_000])
def test_resamples_that_are_kept_are_those_that_are_drawn(rows, monkeypatch):
    """Up to 2^24 counts are kept; those of more rows are drawn anew for every file."""
    bootstrap._kept_counts.cache_clear()
    monkeypatch.setattr(bootstrap, "CHUNK_CELLS", 2 * rows)
    first, again = (next(iter(bootstrap.row_counts(rows))) for _ in range(2))
    rng = np.random.default_rng([bootstrap.SEED, rows])
    drawn = [np.bincount(draw, minlength=rows) for draw in rng.integers(rows, size=(2, rows))]
    np.testing.assert_array_equal(first, drawn)
    np.testing.assert_array_equal(again, drawn)
    bootstrap._kept_counts.cache_clear()


def test_mcnemar_by_hand():
    # 1 against 5 of 6 disagreements: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(14 / 64)
    assert mcnemar(3, 3) == 1 and mcnemar(0, 0) == 1


def test_masks_that_differ_are_reported(tmp_path, caplog):
    runs = [write_run(tmp_path, model, 0) for model in ("DyMo", "M3Care")]
    file = runs[1] / "predictions" / "none.npz"
    arrays = dict(np.load(file))
    np.savez(file, **arrays | {"missing": ~arrays["missing"]})
    tests = compare(gather(runs)[0], pd.concat(r.frame for r in gather(runs)[0]), "accuracy")
    assert tests.loc[tests["model"] == "M3Care", "same_masks"].tolist() == [False] + [True] * (len(SCENARIOS) - 1)
    assert "different masks for PolyMNIST, none" in caplog.text
