"""Metrics of predicted probabilities: negative log-likelihood, Brier score, calibration error of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torchmetrics import Metric

CELLS = 2**22  # logits per chunk of an update, which bounds the memory
BINS = 15


def negative_log_likelihood(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood (N,) per row of one label, or (K,) per labelled cell of a multi-label task; float64.

    Args:
        logits: (N, C).
        target: (N,), or (N, C) for multi-label (< 0 = not labelled).
    """
    logits = logits.double()
    if target.ndim == 1:
        return logits.logsumexp(1) - logits.gather(1, target[:, None])[:, 0]
    is_labelled = target >= 0
    cells = target[is_labelled].double()
    return binary_cross_entropy_with_logits(logits[is_labelled], cells, reduction="none")


def brier_score(logits: Tensor, target: Tensor) -> Tensor:
    """Squared error of the probabilities (N,) per row, or (K,) per labelled cell, see :func:`negative_log_likelihood`.

    As in scikit-learn: summed over three or more classes (0 to 2), of class 1 alone for two (0 to 1).
    """
    if target.ndim == 2:
        is_labelled = target >= 0
        return (logits[is_labelled].double().sigmoid() - target[is_labelled]).square()
    error = logits.double().softmax(1)
    error.scatter_add_(1, target[:, None], error.new_full((len(target), 1), -1.0))
    return error.square().sum(1) / (2 if logits.shape[1] == 2 else 1)


def calibration_gaps(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Bin (N, C) of the probability of every class, and probability minus outcome (N, C) in float64.

    Args:
        target: see :func:`negative_log_likelihood`; the gap of a cell that is not labelled is 0.
    """
    if target.ndim == 2:
        probabilities = logits.float().sigmoid()
        gaps = torch.where(target >= 0, probabilities.double() - target.double(), 0.0)
    else:
        probabilities = logits.float().softmax(1)
        gaps = probabilities.double() - one_hot(target, logits.shape[1])
    return (probabilities * BINS).long().clamp(max=BINS - 1), gaps


class MeanScore(Metric):
    """Mean of a score over rows, or over the labelled cells of a multi-label task; NaN without any.

    Args:
        name: of the state. Metrics of a collection whose states agree in name and value share them.
        score: logits (N, C) and target -> scores (K,), float64.
    """

    full_state_update = False

    def __init__(self, name: str, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.score = name, score
        self.add_state(name, torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")  # sum, number

    def update(self, logits: Tensor, target: Tensor) -> None:
        size = max(CELLS // logits.shape[1], 1)
        for rows, targets in zip(logits.split(size), target.split(size)):
            scores = self.score(rows, targets)
            getattr(self, self.name).add_(torch.stack([scores.sum(), scores.new_tensor(len(scores))]))

    def compute(self) -> Tensor:
        total, number = getattr(self, self.name)
        return (total / number).float()


class ClasswiseCalibrationError(Metric):
    """Calibration error of the probability of every class in 15 equal bins (L1), averaged over classes.

    Kull et al., NeurIPS 2019 (arXiv 1910.12656); the bins are those of the expected calibration error.

    Args:
        num_classes: C.
    """

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("gaps", torch.zeros(num_classes, BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cells", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.gaps: Tensor
        self.cells: Tensor

    def update(self, logits: Tensor, target: Tensor) -> None:
        size = max(CELLS // self.num_classes, 1)
        offset = BINS * torch.arange(self.num_classes, device=logits.device)
        for rows, targets in zip(logits.split(size), target.split(size)):
            bins, gaps = calibration_gaps(rows, targets)
            number = BINS * self.num_classes
            self.gaps += torch.bincount((bins + offset).flatten(), gaps.flatten(), number).view(-1, BINS)
        self.cells += (target >= 0).sum(0)

    def per_class(self) -> Tensor:
        """(C,) float64, NaN for a class without cells."""
        return self.gaps.abs().sum(1) / self.cells

    def compute(self) -> Tensor:
        return self.per_class().nanmean().float()


class LabelCalibrationError(ClasswiseCalibrationError):
    """Calibration error (C,) per label."""

    def compute(self) -> Tensor:
        return self.per_class()
