"""Intervals and tests for the difference between two models.

The training runs of two models are independent, but all runs share their test rows. Counting every run's rows as new
rows (for example McNemar's test on pooled rows) ignores both, and finds differences between equal models far more often
than its level. The interval here has both sources of chance, as in studies in which several readers judge the same
cases (Obuchowski and Rockette 1995, Hillis 2014): runs take the place of readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Estimate of a difference with its standard error and degrees of freedom (inf = normal)."""

    value: float
    error: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval."""
        half = self._quantile((1 + level) / 2) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided p-value of "no difference"; 1 if the difference is 0, NaN if only its error is."""
        if self.error < 1e-12:
            return 1.0 if abs(self.value) < 1e-12 else np.nan
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.df))

    def equivalence_margin(self, alpha: float = 0.05) -> float:
        """Smallest margin within which two one-sided tests at level ``alpha`` call the models equivalent.

        It is the larger absolute bound of the interval of level 1 - 2 alpha (Schuirmann 1987).
        """
        return max(map(abs, self.interval(1 - 2 * alpha)))

    def _quantile(self, probability: float) -> float:
        return float(stats.t.ppf(probability, self.df))


def over_runs_and_rows(a: np.ndarray, b: np.ndarray, draws_a: np.ndarray, draws_b: np.ndarray) -> Difference:
    """Difference between the mean metrics of two models, with runs and test rows random.

    The variance is ``MS_a / S_a + MS_b / S_b + Cov``: ``MS`` is the variance between the runs of a model, which
    includes the part of the sampling of rows that differs between runs, and ``Cov`` is the covariance that all runs
    share through the rows (of a with a, plus b with b, minus twice a with b; at least 0). The degrees of freedom are
    Satterthwaite's with ``Cov`` taken as known, as in Hillis 2014, here for two independent sets of readers.

    Args:
        a, b: (S_a,) and (S_b,) metric of each run on all rows, at least two runs each.
        draws_a, draws_b: (S_a, R) and (S_b, R) metric of each run on R resamples of the rows, the same for all runs.
    """
    runs = len(a), len(b)
    assert min(runs) > 1 and draws_a.shape[1] == draws_b.shape[1]
    usable = np.isfinite(draws_a).all(0) & np.isfinite(draws_b).all(0)
    covariance = np.cov(np.concatenate([draws_a, draws_b])[:, usable])
    within_a, within_b = covariance[: runs[0], : runs[0]], covariance[runs[0] :, runs[0] :]
    shared = _off_diagonal(within_a) + _off_diagonal(within_b) - 2 * covariance[: runs[0], runs[0] :].mean()
    return _welch(a, b, max(float(shared), 0.0))


def over_paired_runs_and_rows(differences: np.ndarray, draws: np.ndarray) -> Difference:
    """Difference between two ways of using the same trained models, with runs and test rows random.

    As :func:`over_runs_and_rows` with one variance, that of the differences between runs. With few runs it can be small
    by chance: of this estimate and the paired t-test over runs, the one with the wider 95 % interval counts.

    Args:
        differences: (S,) per run, at least two.
        draws: (S, R) differences of each run on R resamples of the rows, the same for all runs.
    """
    of_runs = _welch(differences, None, 0.0)
    usable = np.isfinite(draws).all(0)
    shared = max(float(_off_diagonal(np.cov(draws[:, usable]))), 0.0)
    return max(_welch(differences, None, shared), of_runs, key=lambda d: d.interval()[1] - d.interval()[0])


def over_paired_runs(differences: np.ndarray) -> Difference:
    """Mean difference over the runs, with only the runs random (paired t-test)."""
    return _welch(differences, None, 0.0)


def over_runs(a: np.ndarray, b: np.ndarray) -> Difference:
    """Difference between the mean metrics of two models with only the runs random (Welch's t-test)."""
    return _welch(a, b, 0.0)


def over_folds(differences: np.ndarray, test_over_train: float) -> Difference:
    """Mean difference over the folds of a cross-validation.

    The training rows of folds overlap, for which the corrected resampled t-test adds ``n_test / n_train`` to ``1 / K``
    (Nadeau and Bengio 2003).

    Args:
        differences: (K,) per fold.
        test_over_train: number of test rows of a fold, divided by that of its training rows.
    """
    folds = len(differences)
    correction = 1 / folds + test_over_train
    return Difference(float(differences.mean()), float(np.sqrt(correction * differences.var(ddof=1))), folds - 1)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjustment of p-values for their number; NaN stays NaN and does not count.

    The k-th smallest of n is multiplied by n - k + 1, and none is below a smaller one (Holm 1979). statsmodels has the
    same, but collects all garbage of the process at every call, which takes a second in a long run.
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full(len(values), np.nan)
    order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]  # NaN comes last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted


def _off_diagonal(covariance: np.ndarray) -> Any:
    """Mean covariance between different runs."""
    runs = len(covariance)
    return (covariance.sum() - np.trace(covariance)) / (runs * (runs - 1))


def _welch(a: np.ndarray, b: np.ndarray | None, shared: float) -> Difference:
    """Difference of two means, or one mean, whose variance has a known part, ``shared``."""
    samples = [a] if b is None else [a, b]
    parts = np.array([sample.var(ddof=1) / len(sample) for sample in samples])
    variance = parts.sum() + shared
    uncertainty = sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, samples))
    df = variance**2 / uncertainty if uncertainty > 0 else np.inf
    value = a.mean() - (0 if b is None else b.mean())
    return Difference(float(value), float(np.sqrt(variance)), float(df))
