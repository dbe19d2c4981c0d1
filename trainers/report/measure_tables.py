"""Measures of finished runs, as tables in the form of results: one value per data set, model, column, seed and fold."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from datasets.missingness import unobserved
from datasets.missingness.base import AXIS_START, MISSING_RATE, slug
from datasets.missingness.none import Complete
from datasets.missingness.whole import Whole, modality_orders
from trainers.report.html_tables import frame_table, score_table
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
from trainers.report.runs import REPEAT, FinishedRun, load_arrays, load_sorted, scenario_of
from trainers.report.statistics import is_right
from trainers.report.tables import captions_of, label, summarise
from utils.metrics import direction_of

log = logging.getLogger(__name__)


# Name in measures.csv -> title and note on the page.
TEXTS = {
    "area": (
        "Area under the degradation curve",
        "The mean score over the missing rates of a curve, by the trapezoidal rule, from complete data to the highest "
        "rate. Columns are families of scenarios. Only models that were tested under the same scenarios compare.",
    ),
    "contribution": (
        "Contributions of modalities",
        "Shapley values: what a modality adds to the score, averaged over the orders in which modalities may be added; "
        "exact with missing.test=[subsets], from 20 random orders with [subsets_20]. They add up to the score on "
        "complete data minus that of a predictor which knows nothing but the frequencies of the classes.",
    ),
    "contribution_error": ("Standard errors of sampled contributions", "Over the random orders."),
    "equity": (
        "Modality equity",
        "Entropy of the shares of the contributions, divided by its maximum: 1 if all modalities contribute the same, "
        "0 if one contributes everything.",
    ),
    "oracle_gap": (
        "Gap to the oracle subset",
        "What an oracle gains that chooses, with the labels, the best subset per row. On complete data it chooses "
        "among all subsets that were tested (accuracy only), elsewhere among the recoveries that DyMo may accept.",
    ),
}


@dataclass(frozen=True)
class Measure:
    """A table of the report.

    Attributes:
        name: of :data:`TEXTS`.
        unit: of the values.
        values: of each run, in the form of results; ``scenario`` is the column of the table, ``metric`` one name.
    """

    name: str
    unit: str
    values: pd.DataFrame = field(repr=False)

    @property
    def title(self) -> str:
        return f"{TEXTS[self.name][0]}{f', {self.unit}' if self.unit else ''}"

    @property
    def note(self) -> str:
        return TEXTS[self.name][1]

    def summary(self) -> pd.DataFrame:
        """Mean and spread over seeds or folds, see :func:`trainers.report.tables.summarise`."""
        return summarise(self.values)

    def html(self, modalities: Mapping[str, Sequence[str]]) -> list[tuple[str, Markup]]:
        """Data set and table, for the page."""
        blocks = []
        for dataset, part in self.summary().groupby("dataset", sort=False):
            captions = {name: name for name in part["scenario"].unique()}
            if self.name == "oracle_gap":  # its columns are scenarios
                captions = captions_of(part, modalities.get(str(dataset), ()))
            cells = score_table(part, str(part["metric"].iloc[0]), captions, f"{self.title}, {dataset}")
            blocks.append((str(dataset), cells))
        return blocks


def measures_of(
    runs: Sequence[FinishedRun], frame: pd.DataFrame, primary: str, modalities: Mapping[str, Sequence[str]]
) -> list[Measure]:
    """All measures for which the runs have what they need.

    Args:
        frame: results of the runs.
        primary: the metric.
        modalities: data set -> names of its modalities.
    """
    rows, unit = frame[(frame["metric"] == primary) & frame["value"].notna()], label(primary)
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in TEXTS}
    for run in runs:
        of_run = rows[_is_of(run, rows)]
        names = modalities.get(run.dataset, ())
        for model in run.frame["model"].unique():
            part = of_run[of_run["model"] == model]
            if part.empty:
                continue
            parts["area"].append(_rows(part, _areas(part, names), primary))
            if "/" in model or direction_of(primary) != "higher":
                continue  # a comparator of a selection, or a metric for which more is not better
            values, errors = _contributions(run, model, part, primary, names)
            parts["contribution"].append(_rows(part, values, "contribution"))
            parts["contribution_error"].append(_rows(part, errors, "contribution_error"))
            if values:
                parts["equity"].append(_rows(part, {"equity": equity(list(values.values()))}, "equity"))
            parts["oracle_gap"].append(_rows(part, _oracle_gaps(run, model, part, of_run, primary), "oracle_gap"))
    tables = {name: [table for table in tables if len(table)] for name, tables in parts.items()}
    return [
        Measure(name, "" if name == "equity" else unit, pd.concat(tables, ignore_index=True))
        for name, tables in tables.items()
        if tables
    ]


def _is_of(run: FinishedRun, rows: pd.DataFrame) -> pd.Series:
    is_same = (rows["dataset"] == run.dataset) & (rows["seed"] == run.seed)
    return is_same & (rows["fold"] == run.fold) if "fold" in rows else is_same


def _rows(rows: pd.DataFrame, values: Mapping[str, float], metric: str) -> pd.DataFrame:
    """Values of one run and model by column, in the form of results; empty without values."""
    if not values:
        return pd.DataFrame()
    about = rows.iloc[0][["dataset", "model", *REPEAT]].to_dict()
    if metric in rows["metric"].to_numpy() and "direction" in rows:
        about["direction"] = rows["direction"].iloc[0]
    return pd.DataFrame({**about, "scenario": list(values), "metric": metric, "value": list(values.values())})


def _areas(rows: pd.DataFrame, modalities: Sequence[str]) -> dict[str, float]:
    """Family of scenarios -> area under the curve of one run and model."""
    curves: dict[str, dict[float, float]] = {}
    scores = {str(name): float(value) for name, value in zip(rows["scenario"], rows["value"])}
    rates = dict(zip(rows["scenario"], rows.get("missing_rate", pd.Series(np.nan, rows.index))))
    for name, score in scores.items():
        place = scenario_of(name).place(modalities)
        if place is not None and place.axis == MISSING_RATE and place.start in scores:
            curve = curves.setdefault(place.family, {AXIS_START[MISSING_RATE]: scores[place.start]})
            curve[place.x if np.isnan(rates[name]) else float(rates[name])] = score
    points = {family: (list(curve), list(curve.values())) for family, curve in curves.items() if len(curve) > 1}
    return {family: area_under_curve(*curve) for family, curve in points.items()}


def _scores_of_subsets(rows: pd.DataFrame, m: int) -> dict[Subset, float]:
    """Subset of observed modalities -> score of one run and model."""
    scores = {}
    for name, value in zip(rows["scenario"], rows["value"]):
        scenario = scenario_of(str(name))
        if scenario.noise is None and isinstance(scenario, Complete | Whole):
            scores[Subset(range(m)) - set(scenario.always_missing)] = float(value)
    return scores


def _contributions(
    run: FinishedRun, model: str, rows: pd.DataFrame, primary: str, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Contributions of the modalities, and their sampling errors, of one run and model; empty if too few subsets were
    tested."""
    m, file = len(names), run.predictions(model, "none")
    scores = _scores_of_subsets(rows, m)
    is_complete, orders = len(scores) == 2**m - 1, []
    if m < 2 or not file.is_file() or not (is_complete or len(orders := orders_tested(scores, m)) > 1):
        return {}, {}
    arrays, errors = load_arrays(file, "logits", "target"), np.zeros(0)
    scores[Subset()] = score_without_input(arrays["target"], arrays["logits"].shape[1], primary)
    if is_complete:
        values = shapley_values(scores, m)
    else:
        values, errors = sampled_shapley_values(scores.__getitem__, orders)
    return dict(zip(names, values.tolist())), dict(zip(names, errors.tolist()))


def orders_tested(scores: Mapping[Subset, float], m: int) -> list[tuple[int, ...]]:
    """The random orders of ``missing.test=[subsets_<K>]``, up to the first one of which a subset was not tested.

    Args:
        scores: of the subsets that were tested, not of all.
    """
    orders: list[tuple[int, ...]] = []
    for order in modality_orders(m):
        if any(Subset(order[:size]) not in scores for size in range(1, m + 1)):
            break
        orders.append(order)
    return orders


def _oracle_gaps(
    run: FinishedRun, model: str, rows: pd.DataFrame, of_run: pd.DataFrame, primary: str
) -> dict[str, float]:
    """Scenario -> gap to an oracle, of one run and model.

    Args:
        of_run: results of the model and its comparators.
    """
    gaps: dict[str, float] = {}
    files = {str(name): run.predictions(model, str(name)) for name in rows["scenario"] if _is_subset(str(name))}
    files = {name: file for name, file in files.items() if file.is_file()}
    if primary == "accuracy" and "none" in files and len(files) > 1:
        right = {name: _is_right(file) for name, file in files.items()}
        gaps["none"] = oracle_gap(right["none"], np.stack(list(right.values())))
    oracle = of_run[of_run["model"] == f"{model}/oracle_subset"].set_index("scenario")["value"]
    for name, value in zip(rows["scenario"], rows["value"]):
        if name in oracle.index and name != "none":
            gaps[str(name)] = float(oracle[name] - value)
    return gaps


def _is_subset(name: str) -> bool:
    scenario = scenario_of(name)
    return scenario.noise is None and isinstance(scenario, Complete | Whole)


def _is_right(file: Path) -> np.ndarray:
    arrays = load_sorted(file, "logits", "target")
    return is_right(arrays["logits"], arrays["target"])


def pattern_table(runs: Sequence[FinishedRun], modalities: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Accuracy per pattern of missing modalities, of scenarios with more than one pattern.

    Rows are pooled over seeds and folds: a row that is tested with three seeds counts three times.

    Returns:
        columns dataset, model, scenario, pattern, accuracy, n.
    """
    right: dict[tuple[str, str, str], list[np.ndarray]] = {}
    patterns: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for run in runs:
        for scenario in run.frame["scenario"].unique():
            file, names = run.predictions(run.model, scenario), modalities.get(run.dataset, ())
            if not file.is_file() or not names:
                continue
            arrays = load_sorted(file, "logits", "target", "missing")
            texts = _patterns(run, scenario, arrays["missing"].astype(bool), names)
            key = (run.dataset, run.model, str(scenario))
            right.setdefault(key, []).append(is_right(arrays["logits"], arrays["target"]))
            patterns.setdefault(key, []).append(texts)
    rows: list[tuple[Any, ...]] = []
    for key, parts in patterns.items():
        by_pattern = accuracy_by_pattern(list(np.concatenate(parts)), np.concatenate(right[key]))
        if len(by_pattern) > 1:
            rows += [(*key, pattern, accuracy, n) for pattern, (accuracy, n) in by_pattern.items()]
    return pd.DataFrame(rows, columns=["dataset", "model", "scenario", "pattern", "accuracy", "n"])


def _patterns(run: FinishedRun, scenario: str, missing: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(N,) patterns in words: "complete", "image, table partly".

    The stored mask says which tables miss only some cells.
    """
    file = run.path / "masks" / f"{slug(scenario)}.npz"
    stored = load_arrays(file) if file.is_file() else {}
    cells = {key.removeprefix("cells_"): values for key, values in stored.items() if key.startswith("cells_")}
    is_absent = unobserved(missing, cells, names) if all(len(c) == len(missing) for c in cells.values()) else missing
    codes, inverse = np.unique(missing.astype(int) + is_absent, axis=0, return_inverse=True)
    words = ("", " partly", "")
    texts = [", ".join(name + words[code] for name, code in zip(names, row) if code) or "complete" for row in codes]
    return np.array(texts)[inverse.ravel()]


def pattern_blocks(patterns: pd.DataFrame, modalities: Mapping[str, Sequence[str]]) -> list[tuple[str, Markup]]:
    """Heading and HTML table per data set and scenario: accuracy of each model, with the number of rows."""
    blocks = []
    for (dataset, scenario), part in patterns.groupby(["dataset", "scenario"], sort=False):
        text = (100 * part["accuracy"]).map("{:.2f}".format) + part["n"].map(" ({})".format)
        cells = part.assign(text=text).pivot(index="pattern", columns="model", values="text")
        cells = cells.reindex(index=part["pattern"].unique(), columns=part["model"].unique()).fillna("–")
        heading = f"{dataset}, {scenario_of(str(scenario)).caption(modalities.get(str(dataset), ()))}"
        table = cells.rename_axis("missing").rename_axis(None, axis=1).reset_index()
        blocks.append((heading, frame_table(table, f"Accuracy per pattern, {heading}")))
    return blocks
