"""Comparisons of models: the best model of each scenario against every other."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from scipy import stats

from datasets.missingness import mask_hash
from trainers.report.bootstrap import DRAWS, resampled
from trainers.report.directions import LOWER, direction
from trainers.report.inference import (
    Difference,
    holm,
    over_folds,
    over_paired_runs,
    over_paired_runs_and_rows,
    over_runs,
    over_runs_and_rows,
)
from trainers.report.runs import REPEAT, FinishedRun, load_sorted
from trainers.report.style import is_oracle, with_dagger

log = logging.getLogger(__name__)
TESTS = (
    "dataset", "scenario", "metric", "best", "model", "difference", "low", "high", "p", "p_holm",
    "equivalent_within", "test", "unit", "n_runs", "n_rows", "best_only_right", "model_only_right", "same_masks",
)  # fmt: skip
TEXTS = ("dataset", "scenario", "metric", "best", "model", "test", "unit", "same_masks")
Outcome = Mapping[str, np.ndarray]


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p of McNemar's test, from the numbers of rows that only one of two models has right."""
    rows = first_only + second_only
    return float(stats.binomtest(first_only, rows, 0.5).pvalue) if rows else 1.0


def is_right(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N,) bool: the predicted class is the target; of several labels, all labelled ones are right."""
    return (((logits > 0) == (target > 0)) | (target < 0)).all(1) if target.ndim == 2 else logits.argmax(1) == target


def compare(
    runs: Sequence[FinishedRun],
    frame: pd.DataFrame,
    primary: str,
    against: str | None = None,
    *,
    over_rows: bool = True,
) -> pd.DataFrame:
    """Best model of each scenario, or a given one, against every other.

    ``low`` and ``high`` bound the 95 % interval of the difference, ``p`` is two-sided, and ``p_holm`` is adjusted for
    all comparisons of a data set. Two one-sided tests at 5 % call the models equivalent within ``equivalent_within``.
    ``test`` names the method and ``unit`` what it counts as a repetition:

    - ``runs and rows``: both models have several training runs on the same test rows,
      :func:`trainers.report.inference.over_runs_and_rows`; ``same runs and rows``: and they are two ways of using the
      same trained models, :func:`trainers.report.inference.over_paired_runs_and_rows`.
    - ``Welch``, or ``paired t`` for the same trained models: several runs, but no saved predictions or a metric that is
      not resampled; says nothing about other test rows.
    - ``corrected t``: cross-validation, :func:`trainers.report.inference.over_folds`.
    - ``McNemar`` (accuracy of one label) or ``bootstrap``: one run each, so that it says nothing about training again;
      the interval is of the bootstrap over rows.

    Upper bounds (``†``) are listed with their difference, but neither tested nor best.

    Args:
        frame: results of the runs.
        primary: the metric.
        against: the model that takes the place of the best one.
        over_rows: test rows are random too, where predictions are saved. False where they do not determine the metric.
    """
    rows = frame[(frame["metric"] == primary) & frame["value"].notna()]
    sign = -1 if direction(rows, primary) == LOWER else 1
    owner = {(run.dataset, m, run.seed, run.fold): run for run in runs for m in run.frame["model"].unique()}
    entries = []
    ratios: dict[tuple[object, str], float] = {}
    for (dataset, scenario), part in rows.groupby(["dataset", "scenario"], sort=False):
        values = {str(model): group.set_index(REPEAT)["value"] for model, group in part.groupby("model", sort=False)}
        score = {model: sign * value.mean() for model, value in values.items() if not is_oracle(model)}
        best = against or max(score, key=lambda model: score[model], default="")
        pair = _Pair(primary, over_rows)  # holds the predictions of one scenario at a time
        for model in (m for m in values if best and m != best):
            entry = dict.fromkeys(TESTS) | {"dataset": dataset, "scenario": scenario, "metric": primary, "best": best}
            entry |= {"model": with_dagger(model), "n_rows": 0}
            entry["difference"] = values[best].mean() - values[model].mean()
            if not is_oracle(model):
                first, second = (
                    _Member(value, [owner[dataset, m, *r] for r in value.index], m, str(scenario))
                    for m, value in ((best, values[best]), (model, values[model]))
                )
                if (dataset, model) not in ratios:
                    ratios[dataset, model] = _test_over_train([owner[dataset, model, *r] for r in values[model].index])
                entry |= pair.test(first, second, ratios[dataset, model])
            if entry["same_masks"] is False:
                log.warning("report: %s and %s have different masks for %s, %s", best, model, dataset, scenario)
            entries.append(entry)
    tests = pd.DataFrame(entries, columns=list(TESTS))
    tests = tests.astype({column: float for column in TESTS if column not in TEXTS})
    tests["p_holm"] = tests.groupby("dataset", sort=False)["p"].transform(holm)
    return tests.where(tests.notna(), np.nan)


def _test_over_train(runs: Sequence[FinishedRun]) -> float:
    """Test rows per training row in the folds of a cross-validation of which these are runs; 0 without.

    Rows of the validation split, and training rows that ``dataset.train_fraction`` leaves out, train no model.
    """
    if runs[0].fold < 0:
        return 0.0
    config = OmegaConf.create(runs[0].config)
    folds = int(OmegaConf.select(config, "dataset.folds") or 1 + max(run.fold for run in runs))
    validation = float(OmegaConf.select(config, "dataset.fold_validation") or 0)
    kept = OmegaConf.select(config, "dataset.train_fraction")
    return 1 / ((folds - 1) * (1 - validation) * (1.0 if kept is None else float(kept)))


class _Member:
    """One of the two models of a comparison: its metric per (seed, fold), what was trained, and prediction files."""

    def __init__(self, values: pd.Series, runs: Sequence[FinishedRun], model: str, scenario: str) -> None:
        self.values, self.trained = values, [run.trained for run in runs]
        self.files = [run.predictions(model, scenario) for run in runs]

    def file_of(self, repeat: tuple[int, int]) -> Path:
        return self.files[list(self.values.index).index(repeat)]


class _Pair:
    """Tests of pairs of models under one scenario; predictions and their resamples are loaded once."""

    def __init__(self, metric: str, over_rows: bool) -> None:
        self.metric, self.over_rows = metric, over_rows
        self.outcome: Callable[[Path], Outcome] = functools.cache(
            lambda path: load_sorted(path, "logits", "target", "missing")
        )
        self.draws = functools.cache(lambda path: resampled(self.outcome(path), metric))

    def test(self, best: _Member, other: _Member, test_over_train: float) -> dict[str, Any]:
        """Entries of :func:`compare`.

        Args:
            test_over_train: rows of the folds of a cross-validation, 0 = none.
        """
        if test_over_train:
            return self._over_folds(best, other, test_over_train)
        if min(len(best.values), len(other.values)) > 1:
            return self._over_runs(best, other)
        common = best.values.index.intersection(other.values.index, sort=False)
        if not len(common):
            return {"n_runs": 0}
        entry = {"n_runs": 1, "difference": best.values[common[0]] - other.values[common[0]]}
        return entry | self._over_rows(best.file_of(common[0]), other.file_of(common[0]))

    def _over_runs(self, best: _Member, other: _Member) -> dict[str, Any]:
        a, b = best.values.to_numpy(), other.values.to_numpy()
        entry = {"n_runs": min(len(a), len(b))} | self._of_rows(best.files, other.files)
        draws = [self.draws(file) for file in (*best.files, *other.files)] if "n_rows" in entry else [None]
        are_paired = best.trained == other.trained
        if any(draw is None for draw in draws):
            difference = over_paired_runs(a - b) if are_paired else over_runs(a, b)
            return entry | _numbers(difference) | {"test": "paired t" if are_paired else "Welch", "unit": "run"}
        first, second = np.split(np.stack(draws), [len(a)])  # type: ignore[arg-type]
        entry |= {"test": "same runs and rows" if are_paired else "runs and rows", "unit": "run and row"}
        if are_paired:
            return entry | _numbers(over_paired_runs_and_rows(a - b, first - second))
        return entry | _numbers(over_runs_and_rows(a, b, first, second))

    def _over_folds(self, best: _Member, other: _Member, test_over_train: float) -> dict[str, Any]:
        difference = (best.values - other.values).dropna().groupby("fold").mean().to_numpy()
        entry = {"n_runs": len(difference)}
        if len(difference) < 2:
            return entry
        return entry | _numbers(over_folds(difference, test_over_train)) | {"test": "corrected t", "unit": "fold"}

    def _of_rows(self, best: Sequence[Path], other: Sequence[Path]) -> dict[str, Any]:
        """Number of test rows, and whether both models have the same masks.

        Returns:
            Nothing, unless all predictions are saved and of the same rows.
        """
        files = [*best, *other]
        if not self.over_rows or not all(file.is_file() for file in files):
            return {}
        index = self.outcome(files[0])["index"]
        if not all(np.array_equal(index, self.outcome(file)["index"]) for file in files):
            return {}
        masks = [{mask_hash(self.outcome(f)["missing"].astype(bool)) for f in part} for part in (best, other)]
        return {"n_rows": len(index), "same_masks": masks[0] == masks[1]}

    def _over_rows(self, first: Path, second: Path) -> dict[str, Any]:
        """One run each: the test of accuracy counts rows, others resample them."""
        entry = self._of_rows([first], [second])
        if not entry:
            return {}
        draws = self.draws(first), self.draws(second)
        if draws[0] is None or draws[1] is None:
            return entry
        difference = draws[0] - draws[1]
        difference = difference[np.isfinite(difference)]
        if len(difference) < DRAWS / 2:
            return entry
        low, low_90, high_90, high = np.quantile(difference, (0.025, 0.05, 0.95, 0.975))
        entry |= {"low": low, "high": high, "equivalent_within": max(abs(low_90), abs(high_90)), "unit": "row"}
        outcomes = [self.outcome(file) for file in (first, second)]
        if self.metric == "accuracy" and outcomes[0]["target"].ndim == 1:
            right = [is_right(outcome["logits"], outcome["target"]) for outcome in outcomes]
            first_only, second_only = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
            counts = {"best_only_right": first_only, "model_only_right": second_only}
            return entry | counts | {"test": "McNemar", "p": mcnemar(first_only, second_only)}
        # Differences due to rounding count as zero.
        side = min((difference <= 1e-12).sum(), (difference >= -1e-12).sum())
        return entry | {"test": "bootstrap", "p": min(2 * (1 + side) / (1 + len(difference)), 1.0)}


def _numbers(difference: Difference) -> dict[str, float]:
    low, high = difference.interval()
    return {"low": low, "high": high, "p": difference.p, "equivalent_within": difference.equivalence_margin()}
