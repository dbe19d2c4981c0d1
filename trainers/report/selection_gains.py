"""What rules of selection gain over discarding recoveries, in all cells of a study, and what the gain goes with.

A *cell* is a trained model under a scenario. ``MODEL/discard`` is its result without recoveries; ``MODEL`` itself and
its other comparators ``MODEL/RULE`` are the rules that are compared with it. The method is the model's name up to the
first underscore: ``DyMo_MoPoE_15`` is a DyMo.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import stats

from datasets.missingness.random import Random
from trainers.report.directions import LOWER, direction
from trainers.report.evidence import METRICS_OF_CLASSES
from trainers.report.inference import holm
from trainers.report.runs import FinishedRun, scenario_of
from trainers.report.statistics import compare
from trainers.report.style import COLOURS, MARKERS, RC, grid, is_oracle, legend
from utils.errors import UserError

DISCARD, ALL, ORACLE = "/discard", "/impute_all", "/oracle_subset"
GAINS = ("method", "rule", "model", "scenario", "gain", "low", "high", "p_holm")


def gains(runs: Sequence[FinishedRun], frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Gain of every rule over discarding, in every cell.

    Intervals and p-values are those of :func:`trainers.report.statistics.compare` where the predicted classes determine
    the metric. Of other metrics, stored runs have the scores alone, and only the runs are random (paired t-test).

    Args:
        runs, frame: of one data set, each model with two or more runs.

    Returns:
        Columns :data:`GAINS`; a positive gain is better than discarding, ``low`` and ``high`` bound its 95 % interval,
        and ``p_holm`` is adjusted for all cells. Scenarios without missing data are left out, and so are upper bounds.

    Raises:
        UserError: no model has a result without recoveries, there are several data sets, or the metric is not known or
            neither better when higher nor when lower.
    """
    hides = frame["scenario"].map(lambda name: scenario_of(name).hides).astype(bool)
    rows = frame[(frame["metric"] == metric) & hides]
    if not len(rows):
        raise UserError(
            f"no scores of metric {metric} with missing data: known are {', '.join(sorted(set(frame.metric)))}"
        )
    if rows["dataset"].nunique() > 1:
        raise UserError("runs of several data sets: store each as a study of its own")
    if not (better := direction(rows, metric)):
        raise UserError(f"metric {metric} is neither better when higher nor when lower: choose another one")
    backbones = [name.removesuffix(DISCARD) for name in rows["model"].unique() if name.endswith(DISCARD)]
    if not backbones:
        raise UserError(f"no model has the comparator {DISCARD.strip('/')}: test with it in model.comparators")
    parts = []
    for backbone in backbones:
        names = [n for n in rows["model"].unique() if n.partition("/")[0] == backbone and not is_oracle(n)]
        of_backbone = rows[rows["model"].isin(names)]
        over_rows = metric in METRICS_OF_CLASSES
        tests = compare(runs, of_backbone, metric, backbone + DISCARD, over_rows=over_rows)  # discarding minus the rule
        sign = 1 if better == LOWER else -1
        bounds = [sign * tests[bound] for bound in ("low", "high")]
        part = tests.assign(gain=sign * tests["difference"], low=np.minimum(*bounds), high=np.maximum(*bounds))
        parts.append(part.assign(rule=part["model"].str.partition("/")[2], method=backbone.partition("_")[0]))
    cells = pd.concat(parts, ignore_index=True)
    return cells.assign(p_holm=holm(cells["p"]))[list(GAINS)]


def cells_of(runs: Sequence[FinishedRun], frame: pd.DataFrame, coherence: pd.DataFrame) -> pd.DataFrame:
    """Cells of DyMo with the accuracies that its lead is measured against, means over the seeds.

    Args:
        frame: results of the runs.
        coherence: of the imputers, with columns ``dataset``, ``model`` (name of the imputer), ``scenario`` (number of
            observed modalities), ``metric`` and ``value`` (:mod:`trainers.report.recoveries`).

    Returns:
        Columns ``dataset``, ``model``, ``epochs`` (of the backbone), ``scenario``, ``observed`` (modalities),
        ``coherence``, and the accuracies ``selecting``, ``discarding``, ``accepting`` (all recoveries), ``late`` (late
        fusion of the observed views that was trained as long) and ``oracle`` (of the choices, with labels), NaN where
        there is none; shares between 0 and 1.

    Raises:
        UserError: no coherence is known of an imputer, or there is no cell.
    """
    accuracy = frame[frame["metric"] == "accuracy"].groupby(["dataset", "model", "scenario"])["value"].mean()
    known = coherence[coherence["metric"] == "coherence"]
    known = (
        known.assign(scenario=known["scenario"].astype(int)).groupby(["dataset", "model", "scenario"])["value"].mean()
    )
    rows = []
    for run in {(run.dataset, run.model): run for run in runs}.values():
        late = re.compile(rf"LogitAverage_{_epochs(run)}(?:_[^/]+)?{DISCARD}")
        for scenario in frame["scenario"].unique():
            of_cell = accuracy.xs((run.dataset, scenario), level=("dataset", "scenario"))
            parsed = scenario_of(scenario)
            # Of other patterns, the number of observed modalities differs between rows.
            if not isinstance(parsed, Random) or parsed.generator != "exact":
                continue
            if not {run.model + DISCARD, run.model + ALL} <= set(of_cell.index):
                continue
            m = len(run.config["dataset"]["modalities"])
            key = (run.dataset, str(run.config["imputer"]["name"]), m - round(parsed.rate * m))
            if key not in known.index:
                raise UserError(
                    f"no coherence of imputer {key[1]} on {key[0]} from {key[2]} observed modalities: add its run to "
                    "the file of coherence= (python -m trainers.report.recoveries)"
                )
            rows.append(
                {
                    "dataset": run.dataset,
                    "model": run.model,
                    "epochs": _epochs(run),
                    "scenario": scenario,
                    "observed": key[2],
                    "coherence": known[key],
                    "selecting": of_cell[run.model],
                    "discarding": of_cell[run.model + DISCARD],
                    "accepting": of_cell[run.model + ALL],
                    "late": next((v for name, v in of_cell.items() if late.fullmatch(str(name))), np.nan),
                    "oracle": of_cell.get(run.model + ORACLE, np.nan),
                }
            )
    if not rows:
        raise UserError("no run has the comparators discard and impute_all under a scenario such as random_0.8")
    return pd.DataFrame(rows)


def _epochs(run: FinishedRun) -> int:
    return int(run.config["dataset"]["training_defaults"]["max_epochs"])


# Panels: title, label of x, columns whose difference is x (one column: x itself), and the column that the lead is over.
PANELS: tuple[tuple[str, str, tuple[str, str | None], str], ...] = (
    ("lead over discarding", "coherence − accuracy without recoveries", ("coherence", "discarding"), "discarding"),
    ("lead over accepting all", "incoherence of the recoveries", ("one", "coherence"), "accepting"),
    ("lead over discarding, of what a choice could gain", "lead of the oracle", ("oracle", "discarding"), "discarding"),
    ("lead over late fusion", "epochs of backbone and of late fusion", ("epochs", None), "late"),
)


def _axes(cells: pd.DataFrame, columns: tuple[str, str | None], other: str) -> tuple[pd.Series, pd.Series]:
    """What a panel shows of the cells: x and the lead over ``other``, in points (x of one column as it is)."""
    first, second = columns
    values = cells.assign(one=1.0)
    x = values[first] if second is None else 100 * (values[first] - values[second])
    return x, 100 * (cells["selecting"] - cells[other])


@rc_context(RC)
def lead_figure(cells: pd.DataFrame) -> Figure:
    """DyMo's lead, in points, against what is thought to decide it; a mark is a cell."""
    figure, axes = grid(2, 2, 10, 7.4)
    kinds = [(d, s) for d in cells["dataset"].unique() for s in cells["scenario"].unique()]
    scenarios = list(cells["scenario"].unique())
    for ax, (title, xlabel, columns, other) in zip(axes.flat, PANELS, strict=True):
        first, second = columns
        for dataset, scenario in kinds:
            part = cells[(cells["dataset"] == dataset) & (cells["scenario"] == scenario)]
            number = list(cells["dataset"].unique()).index(dataset)
            look = {"color": COLOURS[scenarios.index(scenario)], "marker": MARKERS[number]}
            ax.scatter(*_axes(part, columns, other), s=34, alpha=0.8, label=f"{dataset}, {scenario}", **look)
        if second is None:
            ax.set_xscale("log")
            ax.set_xticks(values := sorted(cells[first].unique()), [str(v) for v in values])
            ax.minorticks_off()
        ax.axhline(0, color="black", linewidth=0.8)
        if first == "oracle":
            ax.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle=":")  # no choice is better
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(xlabel + (" (points)" if second else ""))
        ax.set_ylabel("lead of DyMo (points)")
        ax.grid(alpha=0.3)
    legend(figure, list(axes.flat), 3)
    return figure


def correlations(cells: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of the leads with what is thought to decide them, per data set over its cells.

    Returns:
        Columns ``lead``, ``with``, ``dataset``, ``correlation`` and ``cells``. Cells share samples, backbones and
        imputers, so there is no test.
    """
    rows = []
    for title, xlabel, columns, other in PANELS:
        for dataset, part in cells.groupby("dataset", sort=False):
            x, lead = _axes(part, columns, other)
            known = x.notna() & lead.notna()
            is_determined = known.sum() > 2 and x[known].nunique() > 1
            value = stats.spearmanr(x[known], lead[known]).statistic if is_determined else np.nan
            rows.append((title, xlabel, dataset, value, int(known.sum())))
    return pd.DataFrame(rows, columns=["lead", "with", "dataset", "correlation", "cells"])
