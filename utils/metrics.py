"""Metrics of validation and test, from torchmetrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError, MultilabelStatScores

from utils.probabilities import (
    ClasswiseCalibrationError,
    LabelCalibrationError,
    MeanScore,
    brier_score,
    negative_log_likelihood,
)
from utils.ranking import AUROC, AveragePrecision, LabelAUROC, LabelAveragePrecision

# Measures of one label, from the columns of MultilabelStatScores: tp, fp, tn, fn.
RATIOS: dict[str, Callable[..., Tensor]] = {
    "accuracy": lambda tp, fp, tn, fn: _share(tp + tn, tp + fp + tn + fn),
    "recall": lambda tp, fp, tn, fn: _share(tp, tp + fn),
    "precision": lambda tp, fp, tn, fn: _share(tp, tp + fp),
    "f1": lambda tp, fp, tn, fn: _share(2 * tp, 2 * tp + fp + fn),
    "mcc": lambda tp, fp, tn, fn: _share(
        tp * tn - fp * fn, ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).clamp(min=0).sqrt()
    ),
    "gmean": lambda tp, fp, tn, fn: (_share(tp, tp + fn) * _share(tn, tn + fp)).sqrt(),
}
AVERAGES = ("micro", "macro", "weighted")
# Averages of multi-label tasks whose name is not <measure>_<average>.
_OF_LABELS = {("accuracy", "micro"): "accuracy", ("ece", "macro"): "classwise_ece"}
_OF_LABELS |= {(measure, "macro"): measure for measure in ("auroc", "average_precision")}
_RANKING: dict[str, Callable[[], Metric]] = {"auroc": LabelAUROC, "average_precision": LabelAveragePrecision}
_OF_PROBABILITIES = ("nll", "brier", "classwise_ece")
_OF_MULTILABEL = (
    *(_OF_LABELS.get((m, a), f"{m}_{a}") for m in ("auroc", *RATIOS, "average_precision") for a in AVERAGES),
    *("f1_samples", *_OF_PROBABILITIES),
)
LOWER_IS_BETTER = ("ece", *_OF_PROBABILITIES)
NOT_PERCENT = ("nll", "brier")  # shown as they are, not in percent


def direction_of(metric: str) -> str:
    """``higher`` or ``lower``, whichever is better; ``""`` of a name that is not in :data:`METRICS`."""
    return "" if metric not in METRICS else "lower" if metric in LOWER_IS_BETTER else "higher"


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, 0 where ``whole`` is 0."""
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))


class _CalibrationError(MulticlassCalibrationError):
    """Calibration error with a confidence of exactly 1 in the last bin; torchmetrics gives it a separate bin."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.clamp(max=1 - 2.0**-24), target)


class _SamplesF1(Metric):
    """F1 of the labels of a row, averaged over the rows with a labelled cell (scikit-learn's ``samples``).

    0 for a row without a true or predicted label; NaN without any labelled cell.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")
        self.total: Tensor
        self.rows: Tensor

    def update(self, preds: Tensor, target: Tensor) -> None:
        labelled = target >= 0
        predicted, true = (preds > 0.5) & labelled, (target == 1) & labelled
        self.total += (2 * (predicted & true).sum(1) / (predicted.sum(1) + true.sum(1)).clamp(min=1)).sum()
        self.rows += labelled.any(1).sum()

    def compute(self) -> Tensor:
        return (self.total / self.rows).float()


class _FromCounts(Metric):
    """Metric of the numbers of predicted, true and correctly predicted rows per class.

    Only these counts are stored, neither rows nor a confusion matrix (C, C).

    Args:
        num_classes: C.
        formula: float64 counts (C,) of correct, predicted and true rows -> scalar.
    """

    full_state_update = False

    def __init__(self, num_classes: int, formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.num_classes, self.formula = num_classes, formula
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.counts: Tensor

    def update(self, logits: Tensor, target: Tensor) -> None:
        predicted = logits.argmax(1)
        parts = (target[predicted == target], predicted, target)
        self.counts += torch.stack([torch.bincount(part, minlength=self.num_classes) for part in parts])

    def compute(self) -> Tensor:
        right, predicted, true = self.counts.double()
        return self.formula(right, predicted, true).float()


def _accuracy(right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    return right.sum() / true.sum()


def _f1_macro(right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    return (2 * right / (predicted + true))[predicted + true > 0].mean()


def _recall_macro(right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    return (right / true)[true > 0].mean()


def _gmean(right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    return (right / true)[true > 0].log().mean().exp()


def _mcc(right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Gorodkin's coefficient; 0 if predictions or targets have a single class, NaN without rows."""
    n = true.sum()
    over = (n**2 - predicted.square().sum()) * (n**2 - true.square().sum())
    value = (right.sum() * n - (predicted * true).sum()) / torch.where(over > 0, over, 1.0).sqrt()
    return torch.where(n == 0, torch.nan, torch.where(over > 0, value, 0.0))


# Metrics of tasks with one label per row: name -> metric for C classes. Metrics of torchmetrics receive probabilities
# (N, C), ours receive logits.
ONE_LABEL: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda classes: _FromCounts(classes, _accuracy),
    "auroc": AUROC,
    "f1_macro": lambda classes: _FromCounts(classes, _f1_macro),
    "ece": lambda classes: _CalibrationError(classes, n_bins=15, norm="l1"),
    "recall_macro": lambda classes: _FromCounts(classes, _recall_macro),
    "mcc": lambda classes: _FromCounts(classes, _mcc),
    "gmean": lambda classes: _FromCounts(classes, _gmean),
    "average_precision": AveragePrecision,
    "nll": lambda classes: MeanScore("nll", negative_log_likelihood),
    "brier": lambda classes: MeanScore("brier", brier_score),
    "classwise_ece": ClasswiseCalibrationError,
}
_LISTED_FIRST = ("accuracy", "auroc", "f1_macro", "f1_micro", "f1_weighted", "f1_samples")
METRICS = tuple(dict.fromkeys((*_LISTED_FIRST, *ONE_LABEL, *_OF_MULTILABEL)))


class _FromLogits(MetricCollection):
    """Collection that passes probabilities (softmax in float32) to metrics of torchmetrics, and logits to ours."""

    def __init__(self, metrics: dict[str, Metric | MetricCollection]) -> None:
        super().__init__(metrics)
        parts = [part for metric in metrics.values() for part in _parts(metric)]
        self.needs_probabilities = any("preds" in inspect.signature(part.update).parameters for part in parts)

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        probabilities = {"preds": torch.softmax(logits.float(), dim=1)} if self.needs_probabilities else {}
        super().update(**probabilities, logits=logits, target=target)


def _parts(metric: Metric | MetricCollection) -> list[Metric]:
    return [part for _, part in metric.items()] if isinstance(metric, MetricCollection) else [metric]


class LabelMetrics(MetricCollection):
    """Metrics of multi-label tasks, updated with logits (N, C) and targets (N, C); cells < 0 are ignored.

    A label with a single class among its cells has no value in any measure, and is left out of the averages macro and
    weighted; micro pools the cells of all labels.

    Args:
        num_labels: C.
        names: the names of :data:`METRICS` to compute.
    """

    def __init__(self, num_labels: int, names: Sequence[str]) -> None:
        parts: dict[str, Metric | MetricCollection] = {
            "counts": MultilabelStatScores(num_labels, average=None, ignore_index=-1)
        }
        for measure, metric in _RANKING.items():
            if any(name.startswith(measure) for name in names):
                parts[measure] = metric()
        of_rows: dict[str, Callable[[], Metric]] = {
            "f1_samples": _SamplesF1,
            "nll": lambda: MeanScore("nll", negative_log_likelihood),
            "brier": lambda: MeanScore("brier", brier_score),
            "classwise_ece": lambda: LabelCalibrationError(num_labels),
        }
        parts |= {name: metric() for name, metric in of_rows.items() if name in names}
        super().__init__(parts)
        self.names = [name for name in names if name in _OF_MULTILABEL]

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        target = torch.where(target < 0, -1, target).long()
        super().update(preds=torch.sigmoid(logits.float()), logits=logits, target=target)

    def per_label(self) -> dict[str, Tensor]:
        """Measure -> (C,), NaN for a label with one class; also ``n`` labelled and ``positives`` cells per label."""
        parts = super().compute()
        counts = parts["counts"].double()[:, :4].T
        return self._labels(counts, parts) | {"n": counts.sum(0), "positives": counts[0] + counts[3]}

    def compute(self) -> dict[str, Tensor]:
        parts = super().compute()
        counts = parts["counts"].double()[:, :4].T  # (4, C): tp, fp, tn, fn
        positives = counts[0] + counts[3]
        values = {}
        for measure, per_label in self._labels(counts, parts).items():
            is_defined = ~per_label.isnan()
            pooled = RATIOS[measure](*counts.sum(1)) if measure in RATIOS else per_label.new_tensor(torch.nan)
            pooled = parts[measure][-1] if measure in _RANKING else pooled
            pooled = torch.where(counts.sum() == 0, torch.nan, pooled)
            defined = per_label[is_defined]
            weights = positives[is_defined] / positives[is_defined].sum()
            averages = {"micro": pooled, "macro": defined.mean(), "weighted": (weights * defined).sum()}
            if not is_defined.any():
                averages |= {"macro": per_label.new_tensor(torch.nan), "weighted": per_label.new_tensor(torch.nan)}
            for average, value in averages.items():
                name = _OF_LABELS.get((measure, average), f"{measure}_{average}")
                if name in self.names:
                    values[name] = value.float()
        values |= {name: parts[name] for name in ("f1_samples", "nll", "brier") if name in self.names}
        return {name: values[name] for name in self.names}

    @staticmethod
    def _labels(counts: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Measure -> (C,), from the counts (4, C) and the values of the parts."""
        has_one_class = (counts[0] + counts[3] == 0) | (counts[1] + counts[2] == 0)
        measures = {"auroc": parts["auroc"][:-1].double()} if "auroc" in parts else {}
        measures |= {measure: ratio(*counts) for measure, ratio in RATIOS.items()}
        if "average_precision" in parts:
            measures["average_precision"] = parts["average_precision"][:-1].double()
        if "classwise_ece" in parts:
            measures["ece"] = parts["classwise_ece"].double()
        return {measure: torch.where(has_one_class, torch.nan, values) for measure, values in measures.items()}


def class_measures(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Measures of each class of a task with one label per row.

    Args:
        logits: (N, C).
        target: (N,).

    Returns:
        recall, precision, f1, average_precision and ece (of the probability of the class) -> (C,) float64, NaN for a
        class without rows; also ``n`` rows and ``positives`` per class.
    """
    classes = logits.shape[1]
    counts, ranking, calibration = (
        _FromCounts(classes, _accuracy),
        AveragePrecision(classes),
        ClasswiseCalibrationError(classes),
    )
    for metric in (counts, ranking, calibration):
        metric.update(logits, target)
    right, predicted, true = counts.counts.double()
    parts = {"tp": right, "fp": predicted - right, "tn": len(target) - predicted - true + right, "fn": true - right}
    measures = {name: RATIOS[name](**parts) for name in ("recall", "precision", "f1")}
    measures |= {"average_precision": ranking.per_class(), "ece": calibration.per_class()}
    measures = {name: torch.where(true == 0, torch.nan, values) for name, values in measures.items()}
    return measures | {"n": torch.full_like(true, len(target)), "positives": true}


def metric_names(task: str) -> tuple[str, ...]:
    """Metrics of a task, in the order of :data:`METRICS`."""
    return tuple(name for name in METRICS if name in (_OF_MULTILABEL if task == "multilabel" else ONE_LABEL))


def undefined_monitor(monitor: str, task: str, target: Tensor) -> str | None:
    """Explain why a validation metric has no value on a split, whatever the predictions; None if it has one.

    Args:
        monitor: ``val_`` and a name of :data:`METRICS`, or a loss.
        target: of the split, (N,), or (N, C) for multi-label (< 0 = not labelled).
    """
    name = monitor.removeprefix("val_")
    if name not in METRICS:
        return None
    if len(target) == 0:
        return "it has no rows"
    if task != "multilabel":
        return "its rows are all of one class" if name in _RANKING and len(target.unique()) == 1 else None
    if not (target >= 0).any():
        return "it has no labelled cells"
    has_both = (target == 0).any(0) & (target > 0).any(0)
    pooled = name.endswith("_micro") or name in ("accuracy", "f1_samples", "nll", "brier")
    if name.removesuffix("_micro") in _RANKING and pooled:
        return None if (target == 0).any() and (target > 0).any() else "its labelled cells are all of one class"
    return None if pooled or has_both.any() else "no label has both positive and negative rows"


def classification_metrics(task: str, num_classes: int, names: Sequence[str] = METRICS) -> MetricCollection:
    """Metrics that are updated with logits (N, C) and targets (N,), or (N, C) for multi-label (< 0 = not labelled).

    accuracy is micro, auroc macro one-vs-rest (two classes: of class 1), f1_macro unweighted over classes, ece the
    expected calibration error of the top probability in 15 equal bins (L1), recall_macro the mean and gmean the
    geometric mean of the recalls of the classes that occur (balanced accuracy), mcc Matthews' correlation,
    average_precision averaged as auroc, nll the mean negative log-likelihood (nats), brier the squared error of the
    probabilities (two classes: of class 1, else summed over classes: 0 to 2), classwise_ece the calibration error of
    the probability of every class, averaged over classes.

    Multi-label: every label is a separate decision at probability 0.5; auroc, accuracy, recall, precision, f1, mcc,
    gmean (of sensitivity and specificity) and average_precision, averaged over all labelled cells (``_micro``), over
    labels (``_macro``) and over labels weighted by their positives (``_weighted``); accuracy alone is micro, auroc and
    average_precision alone macro. f1_samples is over rows; nll and brier are over labelled cells; classwise_ece is over
    labels; no ece. See :class:`LabelMetrics`.

    Values in degenerate cases are those of scikit-learn where it defines one (ties count one half in its AUROC), and
    NaN, shown as an en dash, where no value is defined:

    ==============  =============================  =======================================================
    metric          class absent from the target   one class only, constant scores, one row
    ==============  =============================  =======================================================
    accuracy        has no rows to count           the share of correct rows, as always
    auroc           is left out of the mean        one class or one row: NaN, without pairs to order;
                                                   constant scores: 0.5, every pair is a tie
    f1_macro        counts as 0 if predicted,      over the classes that are true or predicted
                    is left out if neither true
                    nor predicted
    ece             has no rows to count           as always, one bin may hold all rows
    recall_macro,   is left out, though it may be  the recall of the class that occurs
    gmean           predicted
    mcc             counts in the predicted        0 where the target or the prediction has one class: no
                    classes                        association can be seen
    average_        is left out of the mean        one class or one row: NaN, precision would be 1 whatever the
    precision                                      scores; constant scores: the share of positives
    nll, brier,     counts with its probability    as always; rows that are wrong with certainty have a finite
    classwise_ece                                  nll, since it is computed from logits
    ==============  =============================  =======================================================

    A class that is never predicted has recall 0 and F1 0 if it is true. Multi-label: a label with one class among its
    labelled cells is NaN and is left out of macro and weighted, NaN if no label is left; without labelled cells all
    metrics are NaN. Without any row every metric but ece (0) is NaN.

    Raises:
        ValueError: a name that is not in :data:`METRICS`, or another task.
    """
    unknown = set(names) - set(METRICS)
    if unknown:
        raise ValueError(f"unknown metric '{min(unknown)}', known are {', '.join(METRICS)}")
    if task == "multilabel":
        return LabelMetrics(num_classes, names)
    if task not in ("multiclass", "binary"):
        raise ValueError(f"no metrics for task '{task}'")
    return _FromLogits({name: ONE_LABEL[name](num_classes) for name in names if name in ONE_LABEL})
