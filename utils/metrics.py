"""The metrics of every test and validation, from torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError, MultilabelStatScores
from torchmetrics.utilities import dim_zero_cat

# Of one label, in the order of the columns of MultilabelStatScores: tp, fp, tn, fn.
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
# What several labels have besides: two of them are called by their measure alone.
_OF_LABELS = {("accuracy", "micro"): "accuracy", ("auroc", "macro"): "auroc"}
_SEVERAL = tuple(_OF_LABELS.get((m, a), f"{m}_{a}") for m in ("auroc", *RATIOS) for a in AVERAGES)
_FIRST = (
    "accuracy",
    "auroc",
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "f1_samples",
    "ece",
    "recall_macro",
    "mcc",
    "gmean",
)
_OF_ONE_LABEL = ("accuracy", "auroc", "f1_macro", "ece", "recall_macro", "mcc", "gmean")
METRICS = (*_FIRST, *(name for name in _SEVERAL if name not in _FIRST))
LOWER_IS_BETTER = ("ece",)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, 0 where there is nothing."""
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))


def binary_auroc(scores: Tensor, is_positive: Tensor) -> Tensor:
    """Area under the ROC curve by the Mann-Whitney statistic; ties count one half, as in scikit-learn.

    Args:
        scores: (N,), larger means more likely positive; on the CPU.
        is_positive: (N,) bool; on the CPU.

    Returns:
        float64 scalar; NaN without positives, without negatives, or where a score is NaN.
    """
    values, is_positive_row = np.sort(scores.numpy()), is_positive.numpy()
    positives = np.sort(scores.numpy()[is_positive_row])
    pairs = len(positives) * (len(values) - len(positives))
    if pairs == 0 or np.isnan(values[-1]):
        return torch.tensor(torch.nan, dtype=torch.float64)
    # Twice the negatives below each positive, and once those level with it: whole numbers, so the sum is exact.
    twice = sum(
        int(np.searchsorted(values, positives, side).sum()) - int(np.searchsorted(positives, positives, side).sum())
        for side in ("left", "right")
    )
    return torch.tensor(twice / (2 * pairs), dtype=torch.float64)


def log_odds(logits: Tensor, cells: int = 2**20) -> Tensor:
    """Log-odds of every class against the others, ``logits[:, c] - logsumexp(logits[:, others])``.

    The classes of a row are sorted, and the others of a class are those before and those after it, so that nothing is
    subtracted and rows with the same logits in another order give the same values.

    Args:
        logits: (N, C).
        cells: so many are taken at a time, which bounds the memory beside the result.

    Returns:
        (N, C) float64, in O(N C log C).
    """
    result = torch.empty(logits.shape, dtype=torch.float64)
    rows = max(cells // logits.shape[1], 1)
    for start in range(0, len(logits), rows):
        ordered, order = logits[start : start + rows].double().sort(1)
        edge = ordered.new_full((len(ordered), 1), -torch.inf)
        before = torch.cat([edge, ordered.logcumsumexp(1)[:, :-1]], 1)
        after = torch.cat([ordered.flip(1).logcumsumexp(1)[:, :-1].flip(1), edge], 1)
        result[start : start + rows].scatter_(1, order, ordered - torch.logaddexp(before, after))
    return result


class _AUROC(Metric):
    """AUROC of what orders the rows, which probabilities no longer do where they round to 1: log-odds in float64.

    The mean over the classes that have positives and negatives, NaN if none has; of two classes that of class 1. The
    values are computed on the CPU, in O(N C (log N + log C)) time and O(N C) memory.

    Args:
        num_classes: C.
    """

    full_state_update = False

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")
        self.scores: list[Tensor]
        self.target: list[Tensor]

    def update(self, logits: Tensor, target: Tensor) -> None:
        self.scores.append(logits)
        self.target.append(target)

    def _rows(self) -> tuple[Tensor, Tensor]:
        """All logits and targets, on the CPU."""
        logits, target = (dim_zero_cat(state) for state in (self.scores, self.target))
        return logits.detach().cpu(), target.detach().cpu()

    def compute(self) -> Tensor:
        logits, target = self._rows()
        if self.num_classes == 2:
            logits = logits.double()
            return binary_auroc(logits[:, 1] - logits[:, 0], target == 1).to(self.device)
        scores = log_odds(logits)
        values = [binary_auroc(column.contiguous(), target == c) for c, column in enumerate(scores.T)]
        return torch.stack(values).nanmean().to(self.device)


class _CalibrationError(MulticlassCalibrationError):
    """torchmetrics puts a confidence of exactly 1 into a bin of its own; here it belongs to the last one."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.clamp(max=1 - 2.0**-24), target)


class _SamplesF1(Metric):
    """F1 of the labels of each row, averaged over the rows that have a labelled cell (scikit-learn's ``samples``).

    0 for a row with labelled cells without a true or predicted label; NaN where no row has a labelled cell.
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
        said, true = (preds > 0.5) & labelled, (target == 1) & labelled
        self.total += (2 * (said & true).sum(1) / (said.sum(1) + true.sum(1)).clamp(min=1)).sum()
        self.rows += labelled.any(1).sum()

    def compute(self) -> Tensor:
        return (self.total / self.rows).float()


class _LabelAUROC(_AUROC):
    """AUROC (C,) of each label over its labelled cells, and of all labels' cells together; NaN where only one class
    occurs."""

    def compute(self) -> Tensor:
        scores, target = self._rows()
        columns = [*zip(scores.T, target.T), (scores.flatten(), target.flatten())]
        return torch.stack([binary_auroc(s[t >= 0], t[t >= 0] == 1) for s, t in columns]).to(self.device)


class _FromCounts(Metric):
    """A metric of how often a class is predicted, true, and both.

    Counts of classes are all that is kept, so that neither the rows nor a confusion matrix (C, C) take memory.

    Args:
        num_classes: C.
        formula: float64 counts (C,) of right, predicted and true rows -> scalar.
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
    """Gorodkin's coefficient; 0 where either side has one class, NaN without rows."""
    n = true.sum()
    over = (n**2 - predicted.square().sum()) * (n**2 - true.square().sum())
    value = (right.sum() * n - (predicted * true).sum()) / torch.where(over > 0, over, 1.0).sqrt()
    return torch.where(n == 0, torch.nan, torch.where(over > 0, value, 0.0))


class _FromLogits(MetricCollection):
    """Gives the calibration error probabilities (softmax in float32), and every other metric the logits."""

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        probabilities = {"preds": torch.softmax(logits.float(), dim=1)} if "ece" in self else {}
        super().update(**probabilities, logits=logits, target=target)


class LabelMetrics(MetricCollection):
    """Metrics of several labels: updated with logits (N, C) and targets (N, C), cells < 0 are left out.

    A label of which only one class occurs among its cells has no value in any measure, and is left out of the averages
    macro and weighted; micro takes the cells of all labels together.

    Args:
        num_labels: C.
        names: of :data:`METRICS`, those that :meth:`compute` gives.
    """

    def __init__(self, num_labels: int, names: Sequence[str]) -> None:
        parts: dict[str, Metric | MetricCollection] = {
            "counts": MultilabelStatScores(num_labels, average=None, ignore_index=-1)
        }
        if any(name.startswith("auroc") for name in names):
            parts["auroc"] = _LabelAUROC()
        if "f1_samples" in names:
            parts["f1_samples"] = _SamplesF1()
        super().__init__(parts)
        self.names = [name for name in names if name in (*_SEVERAL, "f1_samples")]

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        target = torch.where(target < 0, -1, target).long()
        super().update(preds=torch.sigmoid(logits.float()), logits=logits, target=target)

    def per_label(self) -> dict[str, Tensor]:
        """Measure -> (C,), NaN of a label with one class; ``n`` labelled and ``positives`` cells of each label."""
        found = super().compute()
        counts = found["counts"].double()[:, :4].T
        return self._labels(counts, found) | {"n": counts.sum(0), "positives": counts[0] + counts[3]}

    def compute(self) -> dict[str, Tensor]:
        found = super().compute()
        counts = found["counts"].double()[:, :4].T  # (4, C): tp, fp, tn, fn
        positives = counts[0] + counts[3]
        values = {}
        for measure, each in self._labels(counts, found).items():
            there = ~each.isnan()
            pooled = RATIOS[measure](*counts.sum(1)) if measure in RATIOS else found["auroc"][-1]
            pooled = torch.where(counts.sum() == 0, torch.nan, pooled)
            weights = positives[there] / positives[there].sum()
            averages = {"micro": pooled, "macro": each[there].mean(), "weighted": (weights * each[there]).sum()}
            if not there.any():
                averages |= {"macro": each.new_tensor(torch.nan), "weighted": each.new_tensor(torch.nan)}
            for average, value in averages.items():
                name = _OF_LABELS.get((measure, average), f"{measure}_{average}")
                if name in self.names:
                    values[name] = value.float()
        values |= {name: found[name] for name in ("f1_samples",) if name in self.names}
        return {name: values[name] for name in self.names}

    @staticmethod
    def _labels(counts: Tensor, found: dict[str, Tensor]) -> dict[str, Tensor]:
        one_class = (counts[0] + counts[3] == 0) | (counts[1] + counts[2] == 0)
        each = {measure: ratio(*counts) for measure, ratio in RATIOS.items()}
        if "auroc" in found:
            each = {"auroc": found["auroc"][:-1].double(), **each}
        return {measure: torch.where(one_class, torch.nan, values) for measure, values in each.items()}


def metric_names(task: str) -> tuple[str, ...]:
    """The metrics that a task has, in the order of :data:`METRICS`."""
    several = (*_SEVERAL, "f1_samples")
    return tuple(name for name in METRICS if name in (several if task == "multilabel" else _OF_ONE_LABEL))


def undefined_monitor(monitor: str, task: str, target: Tensor) -> str | None:
    """Why a validation metric has no value on a split, whatever is predicted, or None where it has one.

    Args:
        monitor: ``val_`` and a name of :data:`METRICS`, or a loss.
        target: of the split, (N,) or (N, C) of several labels (< 0 = not labelled).
    """
    name = monitor.removeprefix("val_")
    if name not in METRICS:
        return None
    if len(target) == 0:
        return "it has no rows"
    if task != "multilabel":
        return "its rows are all of one class" if name == "auroc" and len(target.unique()) == 1 else None
    if not (target >= 0).any():
        return "it has no labelled cells"
    has_both = (target == 0).any(0) & (target > 0).any(0)
    pooled = name.endswith("_micro") or name in ("accuracy", "f1_samples")
    if name == "auroc_micro":
        return None if (target == 0).any() and (target > 0).any() else "its labelled cells are all of one class"
    return None if pooled or has_both.any() else "no label has both positive and negative rows"


def classification_metrics(task: str, num_classes: int, names: Sequence[str] = METRICS) -> MetricCollection:
    """Metrics that are updated with logits (N, C) and targets (N,), or (N, C) of several labels (< 0 = not labelled).

    accuracy is micro, auroc macro one-vs-rest (two classes: of class 1), f1_macro unweighted over classes, ece the
    expected calibration error of the top probability in 15 equal bins (L1), recall_macro the mean and gmean the
    geometric mean of the recalls of the classes that occur (balanced accuracy), mcc Matthews' correlation.

    Several labels: each label is a decision of its own at probability 0.5; auroc, accuracy, recall, precision, f1, mcc
    and gmean (of sensitivity and specificity), averaged over all labelled cells (``_micro``), over labels (``_macro``)
    and over labels by how often they are true (``_weighted``); accuracy alone is micro, auroc alone macro. f1_samples
    is over rows; no ece. See :class:`LabelMetrics`.

    What is returned where a metric has little to go by. The values are those of scikit-learn where it defines one (ties
    count one half in its AUROC), and NaN, shown as an en dash, where there is no value:

    ==============  =============================  =======================================================
    metric          class absent from the target   one class only, constant scores, one row
    ==============  =============================  =======================================================
    accuracy        has no rows to count           a share of rows as ever
    auroc           is left out of the mean        one class or one row: NaN, there are no pairs to order;
                                                   constant scores: 0.5, every pair is a tie
    f1_macro        counts as 0 if predicted,      over the classes that are true or predicted
                    is left out if neither true
                    nor predicted
    ece             has no rows to count           as ever, one bin may hold all rows
    recall_macro,   is left out, though it may be  the recall of the class that occurs
    gmean           predicted
    mcc             counts in the predicted        0 where the target or the prediction has one class: no
                    classes                        association can be seen
    ==============  =============================  =======================================================

    A class that is never predicted has recall 0 and F1 0 if it is true. Several labels: a label with one class among
    its labelled cells is NaN and is left out of macro and weighted, NaN if no label is left; where no cell is labelled
    all metrics are NaN. Without any row every metric but ece (0) is NaN.

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
    make: dict[str, Metric] = {
        "accuracy": _FromCounts(num_classes, _accuracy),
        "auroc": _AUROC(num_classes),
        "f1_macro": _FromCounts(num_classes, _f1_macro),
        "ece": _CalibrationError(num_classes, n_bins=15, norm="l1"),
        "recall_macro": _FromCounts(num_classes, _recall_macro),
        "mcc": _FromCounts(num_classes, _mcc),
        "gmean": _FromCounts(num_classes, _gmean),
    }
    return _FromLogits({name: make[name] for name in names if name in make})
