"""Cost of the models of a report, from the ``cost`` in ``environment.json`` of their runs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from trainers.report.directions import LOWER, direction
from trainers.report.runs import FinishedRun
from trainers.report.tables import rows_of_metric

SIZES = ("parameters", "trainable_parameters")
SECONDS = (
    "fit_seconds",
    "fit_processor_seconds",
    "test_seconds_per_1000_rows",
    "test_processor_seconds_per_1000_rows",
)
# Costs that charts show against a score -> label.
QUANTITIES = {
    "parameters": "parameters",
    "fit_seconds": "seconds of training",
    "test_seconds_per_1000_rows": "test seconds per 1000 rows",
}
COLUMNS = ("dataset", "model", "runs", *SIZES, *SECONDS, "fit_seconds_sd", "test_seconds_per_1000_rows_sd", "device")


def cost_table(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per data set and model: means over the runs that have costs, and the SD (n - 1) of the wall seconds.

    See :func:`trainers.effort.cost_of`. ``device`` names all devices of the runs: seconds of different ones do not
    compare. Empty if no run has costs.
    """
    rows = []
    for run in runs:
        about = run.environment
        if cost := about.get("cost"):
            values = {key: cost.get(key) for key in (*SIZES, *SECONDS)}
            rows.append({"dataset": run.dataset, "model": run.model, "device": about.get("device", "")} | values)
    if not rows:
        return pd.DataFrame(columns=list(COLUMNS))
    frame = pd.DataFrame(rows).astype(dict.fromkeys((*SIZES, *SECONDS), float))
    groups = frame.groupby(["dataset", "model"], sort=False)
    table = groups[[*SIZES, *SECONDS]].mean()
    table[list(SIZES)] = table[list(SIZES)].round().astype("Int64")
    table["runs"] = groups.size()
    for key in ("fit_seconds", "test_seconds_per_1000_rows"):
        table[f"{key}_sd"] = groups[key].std()
    table["device"] = groups["device"].agg(lambda devices: "; ".join(sorted(set(devices))))
    return table.reset_index()[list(COLUMNS)]


def cost_rows(costs: pd.DataFrame, summary: pd.DataFrame, dataset: str, scenario: str, metric: str) -> pd.DataFrame:
    """Cost and score of the models of a data set, a row per model and quantity with a cost above 0.

    Args:
        costs: of :func:`cost_table`.

    Returns:
        columns model, quantity, cost, mean, sd (of the score in the unit of the tables), better (the mean, or minus the
        mean if lower is better).
    """
    scores = rows_of_metric(summary, metric)
    scores = scores[(scores["dataset"] == dataset) & (scores["scenario"] == scenario) & scores["mean"].notna()]
    of_set = costs[costs["dataset"] == dataset].astype(dict.fromkeys(QUANTITIES, float))
    known = of_set.melt("model", list(QUANTITIES), "quantity", "cost")
    rows = known[known["cost"] > 0].merge(scores[["model", "mean", "sd"]], on="model")
    return rows.assign(better=-rows["mean"] if direction(summary, metric) == LOWER else rows["mean"])
