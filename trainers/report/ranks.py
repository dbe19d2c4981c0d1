"""Comparison of models over many data sets and scenarios: ranks, and aggregates that outliers do not dominate.

A block is a scenario of a data set. Blocks of one data set share training runs and test rows, so that they are not
independent: read the tests of :func:`compare_ranks` as descriptions unless every block is a data set of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from trainers.report.directions import LOWER, direction
from trainers.report.inference import holm
from trainers.report.style import is_oracle

log = logging.getLogger(__name__)
DRAWS = 2000
BLOCK = ["dataset", "scenario"]


@dataclass(frozen=True)
class Ranks:
    """Attributes:
    table: one row per model, best first: ``mean_rank`` (1 = best), ``iqm`` (interquartile mean of all runs and blocks)
        with its 95 % interval ``iqm_low`` and ``iqm_high``, ``p_improvement`` (probability that a run of the best model
        beats a run of this one in a random block, ties counting one half), ``p_wilcoxon`` (signed-rank test against the
        best model over blocks, adjusted after Holm).
    blocks, p_friedman: number of blocks, and p of Friedman's test that all models rank equally.
    nemenyi: p-values between all pairs of models.
    """

    table: pd.DataFrame
    blocks: int
    p_friedman: float
    nemenyi: pd.DataFrame


def compare_ranks(frame: pd.DataFrame, metric: str) -> Ranks | None:
    """Rank the models in every block in which all of them have the metric (Demšar 2006).

    Args:
        frame: results of the runs, see :func:`trainers.report.runs.read_results`.

    Returns:
        None with fewer than three models or five blocks, for which Friedman's test says nothing. Models that use labels
        are left out.
    """
    import scikit_posthocs  # slow to import

    rows = frame[(frame["metric"] == metric) & frame["value"].notna() & ~frame["model"].map(is_oracle)]
    sign = -1 if direction(rows, metric) == LOWER else 1
    rows = rows.assign(value=sign * rows["value"])
    means = rows.pivot_table(index=BLOCK, columns="model", values="value", aggfunc="mean").dropna()
    if means.shape[0] < 5 or means.shape[1] < 3:
        return None
    # Differences below 1e-7 are rounding, not rank.
    rank = means.round(7).rank(axis=1, ascending=False)
    order = list(rank.mean().sort_values(kind="stable").index)
    means, rank, best = means[order], rank[order], order[0]
    with np.errstate(invalid="ignore"):  # NaN where all models tie in all blocks
        friedman = stats.friedmanchisquare(*(means[model].round(7) for model in order))
    wilcoxon = [np.nan] + [_wilcoxon(means[best], means[model]) for model in order[1:]]
    cells = {
        key: group["value"].to_numpy()
        for key, group in rows[rows.set_index(BLOCK).index.isin(means.index)].groupby(["model", *BLOCK])
    }
    values = {model: [cells[(model, *block)] for block in means.index] for model in order}
    entries = []
    for model in order:
        low, high = sorted(sign * bound for bound in iqm_interval(values[model]))
        entries.append(
            {
                "model": model,
                "mean_rank": rank[model].mean(),
                "iqm": sign * iqm(np.concatenate(values[model])),
                "iqm_low": low,
                "iqm_high": high,
                "p_improvement": probability_of_improvement(values[best], values[model]) if model != best else np.nan,
            }
        )
    table = pd.DataFrame(entries).assign(p_wilcoxon=holm(wilcoxon))
    return Ranks(table, len(means), float(friedman.pvalue), scikit_posthocs.posthoc_nemenyi_friedman(means.round(7)))


def iqm(values: np.ndarray) -> float:
    """Interquartile mean: the mean of the middle half (Agarwal et al. 2021)."""
    return float(stats.trim_mean(values, 0.25))


def iqm_interval(values: list[np.ndarray], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the interquartile mean; runs are drawn within each block.

    Args:
        values: the runs of each block.
    """
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.choice(block, (DRAWS, len(block))) for block in values], axis=1)
    low, high = np.quantile(stats.trim_mean(drawn, 0.25, axis=1), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def probability_of_improvement(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Probability that a run of the first model is above a run of the second in a random block; ties count one half.

    Args:
        first, second: the runs of each block.
    """
    blocks = []
    for a, b in zip(first, second):
        statistic = stats.mannwhitneyu(a, b).statistic
        blocks.append(statistic / (len(a) * len(b)))
    return float(np.mean(blocks))


def critical_difference(ranks: Ranks) -> Figure:
    """Critical-difference diagram: mean ranks, with bars across models that Nemenyi's test at 5 % does not separate."""
    import scikit_posthocs

    models = len(ranks.table)
    figure = Figure(figsize=(8, 1.4 + 0.22 * models), layout="constrained")
    mean_rank = ranks.table.set_index("model")["mean_rank"]
    scikit_posthocs.critical_difference_diagram(mean_rank, ranks.nemenyi, ax=figure.subplots())
    figure.suptitle(f"mean rank over {ranks.blocks} scenarios (1 = best)", fontsize=10)
    return figure


def _wilcoxon(a: pd.Series, b: pd.Series) -> float:
    difference = (a - b).round(7)
    return float(stats.wilcoxon(difference).pvalue) if (difference != 0).any() else 1.0
