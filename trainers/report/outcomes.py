"""Outcomes of rows: confusion matrix, reliability diagram, risk against coverage, change per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.special import expit, softmax

from datasets.missingness.base import slug
from trainers.report import distributions
from trainers.report.runs import FinishedRun, load_arrays, scenario_of
from trainers.report.style import RC, grid, legend, model_styles
from utils.probabilities import BINS

MAX_TEXTS, MAX_NAMES = 12, 40  # classes up to which a confusion matrix shows numbers, and names
MAX_MARKERS = 20  # points up to which a line has a marker at every point
COVERAGE = np.arange(1, 101) / 100
# Section of the page, stem of the file, and the function that draws it.
Job = tuple[str, str, Callable[[], Figure | None]]


def confusion_matrix(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(C, C) numbers of rows by true class (first axis) and predicted class."""
    classes = logits.shape[1]
    pairs = target.astype(np.int64) * classes + logits.argmax(1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def reliability(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Number, sum of confidences and number of right rows per bin of confidence, (15, 3).

    The confidence of a row is its top probability. In a multi-label task, each labelled cell counts with the
    probability of its label, and is right if it has the label.
    """
    if target.ndim == 2:
        is_labelled = target >= 0
        confidence, is_right = expit(logits[is_labelled].astype(np.float64)), target[is_labelled] == 1
    else:
        confidence, is_right = softmax(logits.astype(np.float64), axis=1).max(1), logits.argmax(1) == target
    bins = np.clip((confidence.astype(np.float32) * BINS).astype(int), 0, BINS - 1)
    return np.stack([np.bincount(bins, values, BINS) for values in (np.ones(len(bins)), confidence, is_right)], 1)


def risk_coverage(logits: np.ndarray, target: np.ndarray, coverage: np.ndarray = COVERAGE) -> np.ndarray:
    """Error rate of the most confident rows, for each coverage in (0, 1] (Geifman and El-Yaniv, NeurIPS 2017).

    Rows of equal confidence count with their mean error, as in a random order.
    """
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    np.put_along_axis(shifted, logits.argmax(1)[:, None], -np.inf, axis=1)
    doubt = np.exp(shifted).sum(1)  # odds of the other classes, which still differ where probabilities round to 1
    _, group = np.unique(doubt, return_inverse=True)
    is_wrong = logits.argmax(1) != target
    error = np.bincount(group, is_wrong) / np.bincount(group)
    errors = np.cumsum(error[np.sort(group)])
    numbers = np.clip(np.ceil(coverage * len(target) - 1e-9).astype(int), 1, None)
    return errors[numbers - 1] / numbers


def score_by_class(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(C,) fraction of right rows per class, or F1 per label (targets (N, C), < 0 = not labelled); NaN without rows."""
    classes = logits.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        if target.ndim == 1:
            right = np.bincount(target[logits.argmax(1) == target], minlength=classes)
            return right / np.bincount(target, minlength=classes)
        predicted, true = (logits > 0) & (target >= 0), target > 0
        score = 2 * (predicted & true).sum(0) / (predicted.sum(0) + true.sum(0))
        return np.where(true.any(0), score, np.nan)


def outcome_jobs(
    runs: Sequence[FinishedRun], summary: pd.DataFrame, modalities: Mapping[str, Sequence[str]]
) -> list[Job]:
    """Figures of the outcomes on complete data and under the scenario with the highest missing rate.

    Args:
        modalities: data set -> names of its modalities.
    """
    jobs: list[Job] = []
    has_many_sets = summary["dataset"].nunique() > 1
    for dataset, part in summary.groupby("dataset", sort=False):
        of_set = [run for run in runs if run.dataset == dataset]
        captions = {s: scenario_of(s).caption(modalities.get(str(dataset), ())) for s in extremes(part)}
        outcomes = _Outcomes(of_set, list(captions))
        stem, models = f"{dataset}_" if has_many_sets else "", list(part["model"].unique())
        for kind, draw in (("reliability", _reliability_figure), ("risk_coverage", _risk_figure)):
            jobs.append(
                (
                    "outcomes",
                    slug(f"{kind}_{stem}".rstrip("_")),
                    partial(draw, outcomes, models, captions, str(dataset)),
                )
            )
        for model in dict.fromkeys(run.model for run in of_set):
            title = f"{dataset}, {model}"
            job = partial(_confusion_figure, outcomes, model, captions, title)
            jobs.append(("outcomes", slug(f"confusion_{stem}{model}"), job))
            job = partial(_class_figure, outcomes, model, captions, title)
            jobs.append(("outcomes", slug(f"classes_{stem}{model}"), job))
    return jobs


def extremes(summary: pd.DataFrame) -> list[str]:
    """Complete data, and the scenario with the highest realised missing rate, as far as they were tested."""
    names = [str(name) for name in summary["scenario"].unique()]
    rates = summary.groupby("scenario")["missing_rate"].mean() if "missing_rate" in summary else pd.Series(dtype=float)
    hiding = [s for s in rates.index if scenario_of(str(s)).hides and scenario_of(str(s)).noise is None]
    return [name for name in dict.fromkeys(["none", *rates[hiding].nlargest(1).index]) if name in names]


class _Outcomes:
    """Predictions of the runs of a data set, reduced one file at a time."""

    def __init__(self, runs: Sequence[FinishedRun], scenarios: Sequence[str]) -> None:
        self.runs, self.scenarios = runs, scenarios

    def of(self, model: str, scenario: str, reduce: Callable[..., np.ndarray], one_label: bool = False) -> np.ndarray:
        """``reduce(logits, target)`` of every run of the model, (runs, ...); empty without predictions, and with
        ``one_label`` for a multi-label task."""
        results = []
        for run in self.runs:
            file = run.predictions(model, scenario)
            if model.partition("/")[0] != run.model or not file.is_file():
                continue
            data = load_arrays(file, "logits", "target")
            if len(data["target"]) and not (one_label and data["target"].ndim == 2):
                results.append(reduce(data["logits"], data["target"]))
        return np.array(results)

    def class_names(self, model: str, number: int) -> list[str]:
        """Names of the classes, from the stored examples; else their numbers."""
        for run in self.runs:
            for file in sorted((run.path / "examples").glob("*.npz")) if run.model == model else ():
                if len(names := load_arrays(file, "class_names").get("class_names", ())) == number:
                    return [str(name) for name in names]
        return [str(c) for c in range(number)]


@rc_context(RC)
def _panels(
    captions: Mapping[str, str], title: str, lines: Mapping[str, Mapping[str, tuple[Any, Any]]], axes: tuple[str, str]
) -> Figure | None:
    """A panel per scenario and a line per model.

    Args:
        captions: scenario -> title.
        lines: scenario -> model -> x and y.
        axes: labels of x and y.
    """
    models = dict.fromkeys(model for of_scenario in lines.values() for model in of_scenario)
    if not models:
        return None
    figure, panels = grid(1, len(captions), max(4.2 * len(captions), 5.4), 3.6, sharey=True)
    figure.suptitle(title, fontsize=11)
    for ax, (scenario, caption) in zip(panels[0], captions.items()):
        for model, style in model_styles(list(models)).items():
            if model in lines[scenario]:
                look = {key: value for key, value in style.items() if key != "hatch"}
                x, y = lines[scenario][model]
                every = None if len(x) <= MAX_MARKERS else 0.1
                ax.plot(x, y, label=model, markersize=4, linewidth=1.5, markevery=every, **look)
        ax.set_title(caption, fontsize=10)
        ax.set_xlabel(axes[0])
        ax.grid(alpha=0.3)
    panels[0, 0].set_ylabel(axes[1])
    legend(figure, list(panels.flat), 4)
    return figure


def _reliability_figure(
    outcomes: _Outcomes, models: Sequence[str], captions: Mapping[str, str], dataset: str
) -> Figure | None:
    lines: dict[str, dict[str, tuple[Any, Any]]] = {scenario: {} for scenario in captions}
    for scenario in captions:
        for model in models:
            bins = outcomes.of(model, scenario, reliability)
            if len(bins):
                number, confidence, right = bins.sum(0)[bins.sum(0)[:, 0] > 0].T
                lines[scenario][model] = confidence / number, right / number
    figure = _panels(captions, f"{dataset}, reliability", lines, ("confidence", "right"))
    for ax in figure.axes if figure else ():
        ax.plot([0, 1], [0, 1], color="#333333", linewidth=0.8, linestyle=":")
    return figure


def _risk_figure(
    outcomes: _Outcomes, models: Sequence[str], captions: Mapping[str, str], dataset: str
) -> Figure | None:
    lines: dict[str, dict[str, tuple[Any, Any]]] = {scenario: {} for scenario in captions}
    for scenario in captions:
        for model in models:
            curves = outcomes.of(model, scenario, risk_coverage, one_label=True)
            if len(curves):
                lines[scenario][model] = 100 * COVERAGE, 100 * curves.mean(0)
    axes = ("coverage: most confident rows (%)", "error of these rows (%)")
    return _panels(captions, f"{dataset}, risk and coverage", lines, axes)


@rc_context(RC)
def _confusion_figure(outcomes: _Outcomes, model: str, captions: Mapping[str, str], title: str) -> Figure | None:
    matrices = {s: outcomes.of(model, s, confusion_matrix, one_label=True) for s in captions}
    counts = {scenario: parts.sum(0) for scenario, parts in matrices.items() if len(parts)}
    if not counts:
        return None
    classes = len(next(iter(counts.values())))
    names = outcomes.class_names(model, classes)
    side = min(max(0.34 * classes + 1.6, 3.2), 7)
    figure, panels = grid(1, len(counts), side * len(counts) + 0.8, side)
    figure.suptitle(title, fontsize=11)
    for ax, (scenario, matrix) in zip(panels[0], counts.items()):
        share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        image = ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
        for true, predicted in np.ndindex(share.shape) if classes <= MAX_TEXTS else ():
            colour = "white" if share[true, predicted] > 55 else "#222222"
            ax.text(
                predicted, true, f"{share[true, predicted]:.0f}", ha="center", va="center", fontsize=7, color=colour
            )
        if classes <= MAX_NAMES:
            ax.set_xticks(range(classes), names, rotation=90, fontsize=7)
            ax.set_yticks(range(classes), names, fontsize=7)
        ax.set_title(captions[scenario], fontsize=10)
        ax.set_xlabel("predicted")
    panels[0, 0].set_ylabel("true")
    figure.colorbar(image, ax=list(panels.flat), label="rows of the true class (%)")
    return figure


def _class_figure(outcomes: _Outcomes, model: str, captions: Mapping[str, str], title: str) -> Figure | None:
    """Scores of the classes under both scenarios with the change; of many classes those that change most."""
    scores = {s: outcomes.of(model, s, score_by_class) for s in captions}
    if len(captions) < 2 or not all(map(len, scores.values())):
        return None
    with np.errstate(invalid="ignore"):
        columns = {captions[s]: 100 * parts.mean(0) for s, parts in scores.items()}
    names = outcomes.class_names(model, len(next(iter(columns.values()))))
    values = pd.DataFrame(columns, index=pd.Index(names))
    change = values.iloc[:, 1] - values.iloc[:, 0]
    values = values.iloc[np.argsort(-change.abs().fillna(-1).to_numpy(), kind="stable")[:MAX_NAMES]]
    values = values.iloc[np.argsort(change[values.index].fillna(0).to_numpy(), kind="stable")]
    return distributions.per_class(values, "score (%)", model_styles(list(values)), title, change[values.index])
