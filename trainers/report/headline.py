"""The result in sentences: best model per scenario, and its difference to the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from datasets.missingness.base import MISSING_RATE
from trainers.report.directions import LOWER, direction
from trainers.report.runs import scenario_of
from trainers.report.style import is_oracle
from trainers.report.tables import label, rows_of_metric, score_text

CARDS = 6  # per data set


@dataclass(frozen=True)
class Headline:
    """Best model of a scenario.

    Attributes:
        scenario: its caption.
        score: mean ± SD in the unit of the metric.
        repeats: what the mean is over: "3 seeds".
        difference: to the next model with its interval, or why there is none.
    """

    dataset: str
    scenario: str
    model: str
    score: str
    repeats: str
    difference: str


def headline_scenarios(summary: pd.DataFrame) -> list[str]:
    """Complete data and the highest rate of each family of scenarios of one data set; without any, the first
    scenario."""
    names = [str(name) for name in summary["scenario"].unique()]
    last: dict[str, tuple[float, str]] = {}
    for name in names:
        place = scenario_of(name).place()
        if place is not None and place.axis == MISSING_RATE and name != "none":
            last[place.family] = max(last.get(place.family, (-1.0, "")), (place.x, name))
    chosen = [*["none"] * ("none" in names), *(name for _, name in last.values())]
    return chosen[:CARDS] or names[:1]


def headlines(
    summary: pd.DataFrame, tests: pd.DataFrame, metric: str, captions: Mapping[str, Mapping[str, str]]
) -> list[Headline]:
    """Best model and its difference to the next in the most informative scenarios, from the tests of the report.

    Args:
        summary: of :func:`trainers.report.tables.summarise`.
        tests: of :func:`trainers.report.statistics.compare`, for ``metric``.
        captions: data set -> scenario -> caption.

    Returns:
        Nothing for a metric that is neither better high nor low.
    """
    if not (better := direction(summary, metric)):
        return []
    rows = rows_of_metric(summary, metric)
    cards = []
    for dataset, part in rows.groupby("dataset", sort=False):
        for scenario in headline_scenarios(part):
            scores = part[(part["scenario"] == scenario) & part["mean"].notna() & ~part["model"].map(is_oracle)]
            if scores.empty:
                continue
            compared = tests[(tests["dataset"] == dataset) & (tests["scenario"] == scenario)].set_index("model")
            ordered = scores.sort_values("mean", ascending=better == LOWER, kind="stable").set_index("model")
            model = str(compared["best"].iloc[0] if len(compared) else ordered.index[0])
            best, others = ordered.loc[model], [str(other) for other in ordered.index if other != model]
            score = score_text(best["mean"], best["sd"], 2 if label(metric) != metric else None)
            cards.append(
                Headline(
                    str(dataset),
                    captions[str(dataset)].get(scenario, scenario),
                    model,
                    score,
                    _repeats(best),
                    _difference(compared, others, metric, -1 if better == LOWER else 1),
                )
            )
    return cards


def _repeats(row: pd.Series) -> str:
    kind = "fold" if row["n_folds"] else "seed"
    number = int(row["n_folds"] or row["n_seeds"])
    return f"{number} {kind}{'s' * (number != 1)}"


def _difference(tests: pd.DataFrame, others: Sequence[str], metric: str, sign: int) -> str:
    """Difference between the best model of a scenario and the next in words.

    Args:
        tests: of the scenario, by model.
        others: the models but the best, best first.
        sign: -1 if lower is better.
    """
    if not others:
        return "No other model to compare with."
    test = tests.loc[others[0]]
    scale, unit, form = (100, " points", ".2f") if label(metric) != metric else (1, "", ".3g")
    value, low, high = (sign * scale * test[key] for key in ("difference", "low", "high"))
    low, high = sorted((low, high))
    includes_0 = np.isnan(low) or low <= 0 <= high
    if float(format(value, form)) == 0 and includes_0:
        text = f"Level with {others[0]}"
    elif value < 0:  # of the runs that are compared, which are fewer than those of the means
        low, high = -high, -low
        text = f"On the runs that both have, {others[0]}, the next, is {-value:{form}}{unit} better"
    else:
        text = f"{value:{form}}{unit} better than {others[0]}, the next"
    if np.isnan(low):
        return f"{text}; no interval, which needs several runs or saved predictions."
    text += f" (95 % interval {low:{form}} to {high:{form}}".replace("-", "−")
    text += f", adjusted p = {test['p_holm']:.2g})" if not np.isnan(test["p_holm"]) else ")"
    return f"{text}. {'The interval includes 0.' if includes_0 else ''}".strip()
