"""Comparisons of models: paired tests over runs and over test rows."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from datasets.missingness import mask_hash
from trainers.report.bootstrap import DRAWS, resampled
from trainers.report.runs import REPEAT, Run, load_sorted
from trainers.report.style import is_oracle, with_dagger
from utils.metrics import LOWER_IS_BETTER

log = logging.getLogger(__name__)
TESTS = (
    *("dataset", "scenario", "metric", "best", "model", "difference", "n_seeds", "t", "p_t"),
    *("unit", "n_rows", "best_only_right", "model_only_right", "p_mcnemar", "low", "high", "p_bootstrap"),
    "same_masks",
)


def paired_t(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Statistic and two-sided p of the paired t-test.

    If all differences are equal, there is no variance: (0, 1) if they are zero, else (±inf, NaN). Fewer than two pairs:
    (NaN, NaN).
    """
    if len(a) < 2:
        return np.nan, np.nan
    difference = np.asarray(a) - np.asarray(b)
    if np.ptp(difference) < 1e-9:  # far below one test sample: rounding, not variance
        is_zero = abs(difference[0]) < 1e-9
        return (0.0, 1.0) if is_zero else (float(np.copysign(np.inf, difference[0])), np.nan)
    result = stats.ttest_rel(a, b)
    return float(result.statistic), float(result.pvalue)


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p of McNemar's test, from the numbers of rows that only one of two models has right."""
    rows = first_only + second_only
    return float(stats.binomtest(first_only, rows, 0.5).pvalue) if rows else 1.0


def is_right(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N,) bool: the predicted class is the target; of several labels, all labelled ones are right."""
    return (((logits > 0) == (target > 0)) | (target < 0)).all(1) if target.ndim == 2 else logits.argmax(1) == target


def _outcome(path: Path) -> dict[str, np.ndarray]:
    return load_sorted(path, "logits", "target", "missing")


def _resampled(metric: str, path: Path) -> np.ndarray | None:
    return resampled(_outcome(path), metric)


def compare(runs: Sequence[Run], frame: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Best model of each scenario against every other.

    ``p_t`` is of the paired t-test over common seeds (and folds). Tests over test rows use the predictions that both
    models have saved; ``unit`` says what is drawn or counted:

    - accuracy of one label and one common seed: McNemar's exact test (``unit`` is ``row``).
    - otherwise the paired bootstrap over rows: ``low`` and ``high`` bound the 95 % interval of the difference, and
      ``p_bootstrap`` is two-sided. Seeds share their test rows: a row is drawn with the predictions of all seeds
      (``row, all seeds together``), and ``n_rows`` counts it once. Folds have different rows, and no such test.

    Upper bounds (``†``) are listed with their difference, but neither tested nor best.

    Args:
        frame: results of the runs.
        primary: the metric.
    """
    rows = frame[(frame["metric"] == primary) & frame["value"].notna()]
    owner = {(run.dataset, m, run.seed, run.fold): run for run in runs for m in run.frame["model"].unique()}
    entries = []
    for (dataset, scenario), part in rows.groupby(["dataset", "scenario"], sort=False):
        values = {str(model): group.set_index(REPEAT)["value"] for model, group in part.groupby("model", sort=False)}
        sign = -1 if primary in LOWER_IS_BETTER else 1
        score = {model: sign * value.mean() for model, value in values.items() if not is_oracle(model)}
        best = max(score, key=lambda model: score[model], default="")
        outcome = functools.cache(_outcome)  # of one scenario at a time
        draws = functools.cache(functools.partial(_resampled, primary))
        for model in (m for m in values if best and m != best):
            repeats = sorted(set(values[best].index) & set(values[model].index))
            a, b = values[best].loc[repeats].to_numpy(), values[model].loc[repeats].to_numpy()
            entry = dict.fromkeys(TESTS) | {"dataset": dataset, "scenario": scenario, "metric": primary, "best": best}
            entry |= {"model": with_dagger(model), "n_seeds": len(repeats), "n_rows": 0}
            entry["difference"] = (a - b).mean() if repeats else np.nan
            if not is_oracle(model):
                entry["t"], entry["p_t"] = paired_t(a, b)
                files = [[owner[dataset, m, *r].predictions(m, scenario) for m in (best, model)] for r in repeats]
                files = [pair for pair in files if all(file.is_file() for file in pair)]
                has_folds = any(fold >= 0 for _, fold in repeats)
                if files and not has_folds:
                    outcomes = [(outcome(first), outcome(second)) for first, second in files]
                    entry |= _over_rows(outcomes, files, primary, draws)
            if entry["same_masks"] is False:
                log.warning("report: %s and %s have different masks for %s, %s", best, model, dataset, scenario)
            entries.append(entry)
    numbers = [column for column in TESTS[5:] if column not in ("unit", "same_masks")]
    tests = pd.DataFrame(entries, columns=list(TESTS)).astype(dict.fromkeys(numbers, float))
    return tests.where(tests.notna(), np.nan)


def _over_rows(
    outcomes: Sequence[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    files: Sequence[Sequence[Path]],
    primary: str,
    draws: Callable[[Path], np.ndarray | None],
) -> dict[str, Any]:
    """Entries of :func:`compare` from tests over test rows.

    Args:
        outcomes: (best model, other model) predictions per common seed.
        files: of these predictions.
        draws: file -> the metric on every resample.
    """
    index = outcomes[0][0]["index"]
    if not all(np.array_equal(index, data["index"]) for pair in outcomes for data in pair):
        return {}
    hashes = [[mask_hash(data["missing"].astype(bool)) for data in pair] for pair in outcomes]
    has_same_masks = all(first == second for first, second in hashes)
    entry: dict[str, Any] = {"n_rows": len(index), "same_masks": has_same_masks}
    has_one_label = outcomes[0][0]["target"].ndim == 1
    if primary == "accuracy" and has_one_label and len(outcomes) == 1:
        first, second = (is_right(data["logits"], data["target"]) for data in outcomes[0])
        only = int((first & ~second).sum()), int((~first & second).sum())
        names = ("unit", "best_only_right", "model_only_right", "p_mcnemar")
        return entry | dict(zip(names, ("row", *only, mcnemar(*only))))
    samples = [(draws(a), draws(b)) for a, b in files]
    if any(a is None or b is None for a, b in samples):
        return entry
    entry["unit"] = "row" if len(outcomes) == 1 else "row, all seeds together"
    difference = np.mean([a - b for a, b in samples], axis=0)  # type: ignore[operator]
    difference = difference[np.isfinite(difference)]
    if len(difference) >= DRAWS / 2:
        entry["low"], entry["high"] = np.quantile(difference, (0.025, 0.975))
        # Differences due to rounding count as zero.
        side = min((difference <= 1e-12).sum(), (difference >= -1e-12).sum())
        entry["p_bootstrap"] = min(2 * (1 + side) / (1 + len(difference)), 1.0)
    return entry
