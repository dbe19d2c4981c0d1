"""Compare ``results.csv`` of older runs, whose markers hold no checksums, with what their stored predictions give."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence

import torch

from trainers.report.runs import FIX, FinishedRun, load_sorted
from utils.errors import UserError
from utils.metrics import classification_metrics, metric_names
from utils.run_directory import RunDirectory

log = logging.getLogger(__name__)
TOLERANCE = 1e-4  # between versions of the libraries


def verify_results(runs: Sequence[FinishedRun]) -> None:
    """Put the values that the predictions give in the place of others, with a warning.

    Raises:
        UserError: an accuracy differs, which every version computes alike: the file was edited.
    """
    for run in runs:
        if has_checksums(run):
            continue
        changed = []
        for row, metric, stored, computed in differences(run):
            model, scenario = run.frame.loc[row, "model"], run.frame.loc[row, "scenario"]
            text = f"{metric} of {model} under {scenario} is {stored:.4f}, its predictions give {computed:.4f}"
            if metric == "accuracy":
                raise UserError(f"{run.path / 'results.csv'} was edited ({text}): {FIX}")
            run.frame.loc[row, "value"] = computed
            changed.append(text)
        if changed:
            log.warning(
                "report: %s was edited, or is of another version: %s%s; what the predictions give is reported",
                run.path / "results.csv",
                changed[0],
                f" (and {len(changed) - 1} more)" if len(changed) > 1 else "",
            )


def has_checksums(run: FinishedRun) -> bool:
    """Whether the files were compared with a marker, or there is no marker (stored evidence, which has a manifest).

    Raises:
        UserError: the marker is damaged.
    """
    directory = RunDirectory(run.path)
    return not directory.marker("test").exists() or bool(directory.result("test").get("files"))


def differences(run: FinishedRun) -> Iterator[tuple[int, str, float, float]]:
    """Row of the results, metric, stored and computed value, where the two differ. Predictions that are absent, and
    metrics of the user, are not compared."""
    for (model, scenario), rows in run.frame.groupby(["model", "scenario"], sort=False):
        file = run.predictions(str(model), str(scenario))
        if not file.is_file():
            continue
        arrays = load_sorted(file, "logits", "target")
        logits, target = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["target"])
        classes = logits.shape[1]
        task = "multilabel" if target.ndim == 2 else "binary" if classes == 2 else "multiclass"
        names = [name for name in metric_names(task) if name in set(rows["metric"])]
        metrics = classification_metrics(task, classes, names)
        metrics.update(logits, target)
        values = {name: float(value) for name, value in metrics.compute().items()}
        for row, metric, stored in rows[["metric", "value"]].itertuples(name=None):
            computed = values.get(metric, math.nan)
            if math.isfinite(computed) and not abs(computed - stored) <= TOLERANCE:
                yield row, metric, float(stored), computed
