"""Rows of ``results.csv``: metrics of predictions, per scenario and per class."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from trainers.loading import Run
from trainers.prediction import CellMasks, Masks, Outputs
from trainers.report.style import ORACLE_NOTE, is_oracle, with_dagger
from utils.errors import UserError
from utils.metrics import METRICS, LabelMetrics, class_measures, classification_metrics, metric_names
from utils.user_metrics import UserMetrics

log = logging.getLogger(__name__)


def tabulate(
    run: Run, outputs: Outputs, masks: Masks, cells: CellMasks, user_metrics: UserMetrics
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Rows of ``results.csv`` by the outputs of :func:`predict`, and those of ``results_per_class.csv``; logs metrics
    that could not be computed."""
    cfg, data = run.cfg, run.data
    rows, per_class = [], []
    for label, by_scenario in outputs.items():
        name = f"{run.label}/{label}" if label else run.label
        for scenario in run.scenarios:
            arrays = by_scenario[scenario.name]
            values, failures = measure(arrays, data.task, data.num_classes, user_metrics)
            for metric, value in values.items():
                rows.append((cfg.dataset.name, name, cfg.seed, scenario.name, metric, value, len(arrays["target"])))
            for metric, reason in failures.items():
                log.error(
                    "test: metric '%s' of %s under scenario '%s' failed (%s): it is empty in results.csv; "
                    "the predictions are stored",
                    metric,
                    name,
                    scenario.name,
                    reason,
                )
            if not failures:
                per_class.append(measure_classes(arrays, data.class_names).assign(model=name, scenario=scenario.name))
    trained_on = {"train": str(run.training_scenario.name), "fold": run.fold}
    rates = realised_rates(run, masks, cells)
    frame = pd.DataFrame(rows, columns=["dataset", "model", "seed", "scenario", "metric", "value", "n"])
    frame = frame.assign(**trained_on, missing_rate=frame["scenario"].map(rates))
    if not per_class:
        return frame, None
    return frame, pd.concat(per_class).assign(dataset=cfg.dataset.name, seed=cfg.seed, **trained_on)


def realised_rates(run: Run, masks: Masks, cells: CellMasks) -> dict[str, float]:
    """Scenario -> missing rate under its masks."""
    return {s.name: run.data.realised_rate(s, masks[s.name], cells[s.name]) for s in run.scenarios}


def measure(
    arrays: Mapping[str, np.ndarray], task: str, num_classes: int, user_metrics: UserMetrics
) -> tuple[dict[str, float], dict[str, str]]:
    """Classification metrics of one scenario, for a selection the share of accepted recoveries and the rounds per
    sample, and the metrics of the user.

    Returns:
        metric -> value, NaN where it could not be computed, and metric -> reason for these.
    """
    logits, target = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["target"])
    failures: dict[str, str] = {}

    def compute(*names: str) -> dict[str, float]:
        metrics = classification_metrics(task, num_classes, names)
        metrics.update(logits, target)
        return {k: float(v) for k, v in metrics.compute().items()}

    try:
        values = compute(*METRICS)
    except Exception:  # whatever one metric raises, the others are written
        values = {}
        for name in metric_names(task):
            try:
                values |= compute(name)
            except Exception as error:
                values[name] = math.nan
                failures[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if "final_missing" in arrays:
        unrecoverable = arrays.get("unrecoverable", np.zeros_like(arrays["missing"]))
        recovered = (arrays["missing"] & ~unrecoverable).sum()
        accepted = (arrays["missing"] & ~arrays["final_missing"]).sum()
        values["accepted_share"] = float(accepted / recovered) if recovered else 0.0
        values["iterations"] = float(arrays["iterations"].mean())
    for name in user_metrics.metrics:
        try:
            values[name] = user_metrics.compute(name, logits, target)
        except UserError as error:  # the others are written
            values[name], failures[name] = math.nan, str(error)
    return values, failures


def measure_classes(arrays: Mapping[str, np.ndarray], class_names: Sequence[str]) -> pd.DataFrame:
    """Metrics of each class or label in one scenario: one row per metric and class, NaN for a class without rows and a
    label with one class only.

    Returns:
        columns metric, class, value, n (rows, or labelled rows), positives.
    """
    logits, target = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["target"])
    if target.ndim == 2:
        metrics = LabelMetrics(len(class_names), METRICS)
        metrics.update(logits, target)
        values = metrics.per_label()
    else:
        values = class_measures(logits, target)
    counts = {key: values.pop(key).numpy().astype(int) for key in ("n", "positives")}
    parts = [pd.DataFrame({"metric": k, "class": class_names, "value": v, **counts}) for k, v in values.items()]
    return pd.concat(parts)


def accuracy_table(frame: pd.DataFrame) -> str:
    """Accuracy in percent of models (rows) under scenarios (columns), with missing rates, for the terminal; a dagger
    marks models that use labels."""
    accuracy = frame[frame.metric == "accuracy"]
    table = accuracy.pivot(index="model", columns="scenario", values="value") * 100
    order = list(dict.fromkeys(accuracy.scenario))
    table = table.loc[list(dict.fromkeys(accuracy.model)), order].map("{:.2f}".format).replace("nan", "–")
    has_oracle = any(map(is_oracle, table.index))
    table.index = pd.Index([with_dagger(model) for model in table.index], name="model")
    rates = accuracy.groupby("scenario")["missing_rate"].first()[order]
    table.loc["missing rate"] = [f"{rate:.3g}" for rate in rates]
    return table.to_string() + f"\n† {ORACLE_NOTE}" * has_oracle
