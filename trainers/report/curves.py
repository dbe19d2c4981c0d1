"""Curves of scores over missing rates and noise levels: which scenarios lie on them, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from datasets.missingness.base import AXIS_START, MISSING_RATE
from trainers.report.runs import scenario_of


@dataclass(frozen=True)
class Panel:
    """Curves of one data set over one family of scenarios, see :meth:`Scenario.place`.

    Attributes:
        points: columns model, scenario, x, mean, sd in the order of x; empty if the data set lacks the family. Points
            lie at the realised missing rate (column ``missing_rate``), or at the rate in the name where that is not
            known.
    """

    dataset: str
    family: str
    title: str
    points: pd.DataFrame


def curve_panels(
    summary: pd.DataFrame,
    axis: str = MISSING_RATE,
    at_rate_one: Mapping[tuple[str, str], str] | None = None,
    modalities: Mapping[str, Sequence[str]] | None = None,
) -> list[Panel]:
    """A panel per data set and family of scenarios, all families of a data set before those of the next.

    Args:
        summary: columns dataset, model, scenario, mean, sd of one metric.
        axis: MISSING_RATE | NOISE_LEVEL.
        at_rate_one: (data set, scenario of rate 1) -> scenario with the same masks, which ends the curve.
        modalities: data set -> names of its modalities, for titles.
    """
    data = summary
    for (dataset, name), scenario in (at_rate_one or {}).items():
        end = data[(data["dataset"] == dataset) & (data["scenario"] == scenario)]
        data = pd.concat([data, end.assign(scenario=name, missing_rate=1.0)], ignore_index=True)
    families: dict[str, dict[str, float]] = {}  # family -> scenario -> x, the start of the curve first
    titles: dict[tuple[str, str], str] = {}
    for dataset, name in data[["dataset", "scenario"]].drop_duplicates().itertuples(index=False):
        place = scenario_of(name).place()
        if place is not None and place.axis == axis:
            families.setdefault(place.family, {place.start: AXIS_START[axis]})[name] = place.x
            named = scenario_of(name).place((modalities or {}).get(dataset, ()))
            titles[dataset, place.family] = f"{dataset}, {(named or place).family}"
    if axis == MISSING_RATE and "missing_rate" in data:
        data = data.assign(realised=data["missing_rate"])
    return [
        Panel(dataset, family, titles.get((dataset, family), f"{dataset}, {family}"), _points(data, dataset, places))
        for dataset in dict.fromkeys(dataset for dataset, _ in titles)
        for family, places in families.items()
    ]


def _points(data: pd.DataFrame, dataset: str, places: Mapping[str, float]) -> pd.DataFrame:
    """Points of the curves of one panel; a model that was only tested at the start of the curve has none.

    Args:
        places: scenario -> x, the start of the curve first. Column ``realised`` of the data has precedence at all
            points but the first, if not NaN.
    """
    start = next(iter(places))
    points = data[(data["dataset"] == dataset) & data["scenario"].isin(places)]
    points = points.assign(x=points["scenario"].map(places))
    if "realised" in points:
        realised = points["realised"].where(points["scenario"] != start)
        points = points.assign(x=realised.fillna(points["x"]))
    has_curve = points["model"].isin(points.loc[points["scenario"] != start, "model"])
    return points[has_curve].sort_values("x", kind="stable")
