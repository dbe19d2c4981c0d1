"""Intervals of differences: coverage of a known difference in simulations; SciPy and statsmodels on fixed arrays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind

from trainers.report.inference import (
    Difference,
    holm,
    over_folds,
    over_paired_runs,
    over_paired_runs_and_rows,
    over_runs,
    over_runs_and_rows,
)
from trainers.report.statistics import mcnemar

ROWS, RESAMPLES, STUDIES = 150, 200, 1000
COUNTS = np.random.default_rng(0).multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=RESAMPLES) / ROWS  # (R, N)


def simulate(runs: int, run_sd: float, row_sd: float, shift: float, seed: int) -> tuple[float, list[np.ndarray]]:
    """Accuracy of two models in which runs, rows and models differ: a row is right if its latent score is positive.

    Returns:
        The true difference, and (STUDIES, runs, N) bool outcomes of both models.
    """
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(1, 1, (STUDIES, 1, ROWS))
    outcomes = []
    for offset in (0.0, shift):
        of_rows, of_runs = rng.normal(0, row_sd, (STUDIES, 1, ROWS)), rng.normal(0, run_sd, (STUDIES, runs, 1))
        noise = rng.normal(0, 0.3, (STUDIES, runs, ROWS))
        outcomes.append(difficulty + offset + of_rows + of_runs + noise > 0)
    sd = np.sqrt(1 + row_sd**2 + run_sd**2 + 0.3**2)
    return float(stats.norm.cdf(1 / sd) - stats.norm.cdf((1 + shift) / sd)), outcomes


@pytest.mark.parametrize("shift", [0.0, 0.15])
@pytest.mark.parametrize("run_sd, row_sd", [(0.05, 0.1), (0.05, 0.4), (0.2, 0.1), (0.2, 0.4)])
@pytest.mark.parametrize("runs", [3, 5])
def test_intervals_cover_the_known_difference(runs, run_sd, row_sd, shift):
    """The interval covers at 95 ± 2 %. Of two equal models, the test finds at most 7 % different; McNemar's test on the
    pooled rows of all runs exceeds its level, by far if runs or rows vary much."""
    truth, (first, second) = simulate(runs, run_sd, row_sd, shift, seed=runs)
    covered = rejected = pooled = 0
    for a, b in zip(first, second):
        difference = over_runs_and_rows(a.mean(1), b.mean(1), a @ COUNTS.T, b @ COUNTS.T)
        low, high = difference.interval()
        covered += low <= truth <= high
        rejected += difference.p < 0.05
        pooled += mcnemar((a & ~b).sum(), (~a & b).sum()) < 0.05
    # Of 1000 studies with coverage 0.95, 99.9 % lie within 0.023 of it.
    assert 0.927 <= covered / STUDIES <= 0.973
    if shift == 0:
        assert rejected / STUDIES <= 0.073
        assert pooled / STUDIES > (0.08 if (run_sd, row_sd) == (0.05, 0.1) else 0.12)
    if shift and run_sd < 0.1 and row_sd < 0.2:
        assert rejected / STUDIES > 0.3  # the interval is not merely wide


@pytest.mark.parametrize(
    "runs, run_sd, row_sd", [(3, 0.0, 0.4), (3, 0.2, 0.1), (3, 0.2, 0.4), (5, 0.05, 0.1), (5, 0.2, 0.4)]
)
def test_intervals_of_paired_runs_cover_the_known_difference(runs, run_sd, row_sd):
    truth, (first, second) = simulate(runs, run_sd, row_sd, 0.15, seed=10 + runs)
    covered = 0
    for a, b in zip(first, second):
        draws = (a @ COUNTS.T) - (b @ COUNTS.T)
        low, high = over_paired_runs_and_rows(a.mean(1) - b.mean(1), draws).interval()
        covered += low <= truth <= high
    assert 0.927 <= covered / STUDIES <= 0.973


def test_paired_runs_are_those_of_the_paired_t_test():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 5))
    expected = stats.ttest_rel(a, b)
    assert over_paired_runs(a - b).p == pytest.approx(expected.pvalue)
    # Rows that all runs share with the same variance only widen the interval.
    same = over_paired_runs_and_rows(a - b, np.tile(rng.normal(size=500), (5, 1)))
    assert same.error**2 == pytest.approx(over_paired_runs(a - b).error ** 2 + 1, rel=0.15)


def test_without_shared_rows_the_interval_is_that_of_welch():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.9, 0.02, 4), rng.normal(0.87, 0.05, 6)
    expected = stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval()
    for difference in (
        over_runs(a, b),
        over_runs_and_rows(a, b, np.repeat(a[:, None], 50, 1), np.repeat(b[:, None], 50, 1)),
    ):
        assert difference.p == pytest.approx(expected.pvalue)
        assert difference.interval() == pytest.approx((interval.low, interval.high))


def test_rows_of_every_run_add_their_shared_covariance():
    """Equal runs: all variance is that of the rows, that of a paired difference of proportions."""
    rng = np.random.default_rng(2)
    a, b = rng.random(ROWS) < 0.9, rng.random(ROWS) < 0.8
    counts = np.random.default_rng(3).multinomial(ROWS, np.full(ROWS, 1 / ROWS), size=20_000) / ROWS
    repeat = [np.repeat((counts @ right)[None], 3, 0) for right in (a, b)]
    difference = over_runs_and_rows(np.full(3, a.mean()), np.full(3, b.mean()), *repeat)
    rows = a.astype(float) - b
    assert difference.error == pytest.approx(rows.std() / ROWS**0.5, rel=0.03)  # 20,000 resamples: SD 0.5 %
    assert difference.df == np.inf


def test_equal_models_are_never_different():
    draws = np.full((3, 10), 0.5)
    difference = over_runs_and_rows(draws[:, 0], draws[:, 0], draws, draws)
    assert difference.p == 1 and difference.interval() == (0, 0) and difference.equivalence_margin() == 0
    assert np.isnan(Difference(0.1, 0.0, 2).p)  # the same difference in all runs says nothing of its error


def test_resamples_without_a_value_are_left_out():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 3, 100))
    means = a.mean(1), b.mean(1)
    expected = over_runs_and_rows(*means, a[:, :99], b[:, :99])
    b[1, 99] = np.nan
    assert over_runs_and_rows(*means, a, b) == expected


def test_equivalence_is_that_of_two_one_sided_tests():
    """At the margin itself, the larger p of both one-sided tests is their level."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.9, 0.01, 5), rng.normal(0.905, 0.02, 5)
    margin = over_runs(a, b).equivalence_margin()
    assert ttost_ind(a, b, -margin, margin, usevar="unequal")[0] == pytest.approx(0.05)


def test_folds_by_hand():
    # Differences 1, 2, 3 of 3 folds: variance 1, (1/3 + (1/3) / (2/3)) = 5/6; t = 2 / sqrt(5/6), 2 degrees of freedom.
    difference = over_folds(np.array([1.0, 2.0, 3.0]), test_over_train=1 / 2)
    assert (difference.value, difference.error, difference.df) == (2, pytest.approx((5 / 6) ** 0.5), 2)
    t = 2 / (5 / 6) ** 0.5
    assert difference.p == pytest.approx(1 - t / (t**2 + 2) ** 0.5)


def test_folds_hold_their_level_where_the_plain_t_test_does_not():
    """Two equal models on overlapping training sets: a fold's difference depends on its training rows (mean of a row
    effect over them) and on its test rows."""
    rng = np.random.default_rng(6)
    folds, rows, studies = 5, 100, 1000
    fold = np.arange(rows) % folds
    corrected = plain = 0
    for effect in rng.normal(size=(studies, rows)):
        train = np.array([effect[fold != k].mean() for k in range(folds)])
        # The sign of what is learned from the training rows decides which model is better on the test rows.
        difference = 3 * train + rng.normal(size=(folds, rows // folds)).mean(1) * 0.3
        corrected += over_folds(difference, 1 / (folds - 1)).p < 0.05
        plain += stats.ttest_1samp(difference, 0).pvalue < 0.05
    assert corrected < plain
    assert plain / studies > 0.2


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 60):
        p = rng.random(n) ** 3
        p[rng.random(n) < 0.3] = p[0]  # ties
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04: times 3, 2, 1 = 0.03, 0.04, 0.04.
    np.testing.assert_allclose(holm([0.04, np.nan, 0.01, 0.02]), [0.04, np.nan, 0.03, 0.04])
    assert np.isnan(holm([np.nan, np.nan])).all()
