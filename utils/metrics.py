"""The metrics of every test and validation, from torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MulticlassStatScores,
    MultilabelStatScores,
)
from torchmetrics.functional.classification import binary_auroc, multiclass_auroc
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
METRICS = (*_FIRST, *(name for name in _SEVERAL if name not in _FIRST))
LOWER_IS_BETTER = ("ece",)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, 0 where there is nothing."""
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))


class _AUROC(Metric):
    """AUROC of what orders the rows, which probabilities no longer do where they round to 1: logits, of several classes
    log-odds. torchmetrics makes probabilities of anything outside [0, 1]: it gets ranks.

    Args:
        num_classes: C; of two, the value of class 1, of more the mean of each against the rest.
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
        self.scores.append(self._scores(logits.double()))
        self.target.append(target)

    def _scores(self, logits: Tensor) -> Tensor:
        if self.num_classes == 2:
            return logits[:, 1] - logits[:, 0]
        own = torch.eye(self.num_classes, dtype=torch.bool, device=logits.device)
        rest = logits[:, None].expand(-1, self.num_classes, -1).masked_fill(own, -torch.inf)
        return logits - rest.logsumexp(-1)

    def compute(self) -> Tensor:
        scores, target = dim_zero_cat(self.scores), dim_zero_cat(self.target)
        if self.num_classes == 2:
            return binary_auroc(_ranks(scores), target)
        ranks = torch.stack([_ranks(column) for column in scores.T], 1)
        return multiclass_auroc(ranks, target, self.num_classes, average="macro")


def _ranks(scores: Tensor) -> Tensor:
    """(N,) -> (N,) in [0, 1), in the same order and with the same ties."""
    return scores.unique(return_inverse=True)[1] / scores.new_tensor(max(len(scores), 1), dtype=torch.float64)


class _CalibrationError(MulticlassCalibrationError):
    """torchmetrics puts a confidence of exactly 1 into a bin of its own; here it belongs to the last one."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.clamp(max=1 - 2.0**-24), target)


class _SamplesF1(Metric):
    """F1 of the labels of each row, averaged over rows (scikit-learn's ``samples``); 0 for a row without any label,
    said or true."""

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
        self.rows += len(target)

    def compute(self) -> Tensor:
        return (self.total / self.rows).float()


class _LabelAUROC(_AUROC):
    """AUROC (C,) of each label over its labelled cells, and of all labels' cells together; NaN where only one class
    occurs (torchmetrics gives 0 there, and stops at a label without any cell)."""

    def _scores(self, logits: Tensor) -> Tensor:
        return logits

    def compute(self) -> Tensor:
        scores, target = dim_zero_cat(self.scores), dim_zero_cat(self.target)
        columns = [*zip(scores.T, target.T), (scores.flatten(), target.flatten())]
        return torch.stack([self._one(s[t >= 0], t[t >= 0]) for s, t in columns])

    @staticmethod
    def _one(scores: Tensor, target: Tensor) -> Tensor:
        if not (target == 0).any() or not (target == 1).any():
            return scores.new_tensor(torch.nan)
        return binary_auroc(_ranks(scores), target).to(scores.dtype)


class _GMean(MulticlassStatScores):
    """Geometric mean of the recalls of the classes that occur, or with ``arithmetic`` their mean."""

    def __init__(self, num_classes: int, arithmetic: bool = False) -> None:
        super().__init__(num_classes, average=None)
        self.arithmetic = arithmetic

    def compute(self) -> Tensor:
        tp, fn = (self._final_state()[i].double() for i in (0, 3))
        recall = (tp / (tp + fn))[tp + fn > 0]
        return (recall.mean() if self.arithmetic else recall.log().mean().exp()).float()


class _FromLogits(MetricCollection):
    """Applies softmax once, in float32, before all metrics but the AUROC."""

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        super().update(preds=torch.softmax(logits.float(), dim=1), logits=logits, target=target)


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


def classification_metrics(task: str, num_classes: int, names: Sequence[str] = METRICS) -> MetricCollection:
    """Metrics that are updated with logits (N, C) and targets (N,), or (N, C) of several labels (< 0 = not labelled).

    accuracy is micro, auroc macro one-vs-rest (two classes: of class 1), f1_macro unweighted over classes, ece the
    expected calibration error of the top probability in 15 equal bins (L1), recall_macro the mean and gmean the
    geometric mean of the recalls of the classes that occur (balanced accuracy), mcc Matthews' correlation.

    Several labels: each label is a decision of its own at probability 0.5; auroc, accuracy, recall, precision, f1, mcc
    and gmean (of sensitivity and specificity), averaged over all labelled cells (``_micro``), over labels (``_macro``)
    and over labels by how often they are true (``_weighted``); accuracy alone is micro, auroc alone macro. f1_samples
    is over rows; no ece. See :class:`LabelMetrics`.

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
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "auroc": _AUROC(num_classes),
        "f1_macro": MulticlassF1Score(num_classes, average="macro"),
        "ece": _CalibrationError(num_classes, n_bins=15, norm="l1"),
        "recall_macro": _GMean(num_classes, arithmetic=True),
        "mcc": MulticlassMatthewsCorrCoef(num_classes),
        "gmean": _GMean(num_classes),
    }
    return _FromLogits({name: make[name] for name in names if name in make})
