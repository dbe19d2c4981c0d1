"""The metrics of every test and validation, from torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelAUROC,
    MultilabelF1Score,
)

METRICS = ("accuracy", "auroc", "f1_macro", "f1_micro", "f1_weighted", "f1_samples", "ece")
LOWER_IS_BETTER = ("ece",)


class _PositiveAUROC(BinaryAUROC):
    """Binary AUROC that takes two-class probabilities and reads column 1."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds[:, 1], target)


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


class _FromLogits(MetricCollection):
    """Applies softmax once, in float32, before all metrics."""

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        super().update(torch.softmax(logits.float(), dim=1), target)


class _FromLabelLogits(MetricCollection):
    """The same for several labels: sigmoid, and targets < 0 are left out."""

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        super().update(torch.sigmoid(logits.float()), torch.where(target < 0, -1, target).long())


def classification_metrics(task: str, num_classes: int, names: Sequence[str] = METRICS) -> MetricCollection:
    """Metrics that are updated with logits (N, C) and targets (N,), or (N, C) of several labels (< 0 = not labelled).

    accuracy is micro, auroc macro one-vs-rest (two classes: of class 1), f1_macro unweighted over classes, ece the
    expected calibration error of the top probability in 15 equal bins (L1). Several labels: each label is a decision of
    its own at probability 0.5; accuracy and f1_micro over all labelled cells, auroc and f1_macro unweighted over
    labels, f1_weighted over labels by how often they are true, f1_samples over rows; no ece. These further F1 are for
    several labels only.

    Raises:
        ValueError: a name that is not in :data:`METRICS`, or another task.
    """
    unknown = set(names) - set(METRICS)
    if unknown:
        raise ValueError(f"unknown metric '{min(unknown)}', known are {', '.join(METRICS)}")
    if task == "multilabel":
        labels: dict[str, Metric] = {
            "accuracy": MultilabelAccuracy(num_classes, average="micro", ignore_index=-1),
            "auroc": MultilabelAUROC(num_classes, average="macro", ignore_index=-1),
            **{
                f"f1_{average}": MultilabelF1Score(num_classes, average=average, ignore_index=-1)
                for average in ("macro", "micro", "weighted")
            },
            "f1_samples": _SamplesF1(),
        }
        return _FromLabelLogits({name: labels[name] for name in names if name in labels})
    if task not in ("multiclass", "binary"):
        raise ValueError(f"no metrics for task '{task}'")
    binary = num_classes == 2
    make: dict[str, Metric] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "auroc": _PositiveAUROC() if binary else MulticlassAUROC(num_classes, average="macro"),
        "f1_macro": MulticlassF1Score(num_classes, average="macro"),
        "ece": _CalibrationError(num_classes, n_bins=15, norm="l1"),
    }
    return _FromLogits({name: make[name] for name in names if name in make})
