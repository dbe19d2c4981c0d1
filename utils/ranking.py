"""Metrics of an order of rows: area under the ROC curve and average precision, from log-odds in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


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
    # Twice the number of negatives below a positive, plus those of equal score: integers, so that the sum is exact.
    twice = sum(
        int(np.searchsorted(values, positives, side).sum()) - int(np.searchsorted(positives, positives, side).sum())
        for side in ("left", "right")
    )
    return torch.tensor(twice / (2 * pairs), dtype=torch.float64)


def binary_average_precision(scores: Tensor, is_positive: Tensor) -> Tensor:
    """Mean precision at the scores of the positives; rows of equal score count together, as in scikit-learn.

    Args:
        scores, is_positive: as for :func:`binary_auroc`.

    Returns:
        float64 scalar; NaN without positives, without negatives, or where a score is NaN.
    """
    values = np.sort(scores.numpy())
    positives = np.sort(scores.numpy()[is_positive.numpy()])
    if len(positives) in (0, len(values)) or np.isnan(values[-1]):
        return torch.tensor(torch.nan, dtype=torch.float64)
    true_positives = len(positives) - np.searchsorted(positives, positives)
    predicted = len(values) - np.searchsorted(values, positives)
    return torch.tensor((true_positives / predicted).mean(), dtype=torch.float64)


def log_odds(logits: Tensor, cells: int = 2**20) -> Tensor:
    """Log-odds of every class against the others, ``logits[:, c] - logsumexp(logits[:, others])``.

    The classes of a row are sorted, and the other classes are those before and those after a class, so that nothing is
    subtracted and rows with the same logits in another order give the same values.

    Args:
        logits: (N, C).
        cells: number of logits per chunk, which bounds the memory.

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


class AUROC(Metric):
    """AUROC of log-odds in float64, which still order rows whose probabilities round to 1.

    The mean over the classes that have positives and negatives, NaN without such a class; for two classes, that of
    class 1. Computed on the CPU, in O(N C (log N + log C)) time and O(N C) memory.

    Args:
        num_classes: C.

    Attributes:
        score: metric of one class, from its scores (N,) and positives (N,).
    """

    full_state_update = False
    score: Callable[[Tensor, Tensor], Tensor] = staticmethod(binary_auroc)

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

    def per_class(self) -> Tensor:
        """(C,) float64, NaN for a class without positives or negatives."""
        logits, target = self._rows()
        columns = log_odds(logits).T
        return torch.stack([self.score(column.contiguous(), target == c) for c, column in enumerate(columns)])

    def compute(self) -> Tensor:
        if self.num_classes != 2:
            return self.per_class().nanmean().to(self.device)
        logits, target = self._rows()
        logits = logits.double()
        return self.score(logits[:, 1] - logits[:, 0], target == 1).to(self.device)


class AveragePrecision(AUROC):
    """Average precision of log-odds, averaged over classes as :class:`AUROC`."""

    score = staticmethod(binary_average_precision)


class LabelAUROC(AUROC):
    """AUROC (C + 1,) per label over its labelled cells, and over the cells of all labels; NaN with a single class."""

    def compute(self) -> Tensor:
        scores, target = self._rows()
        columns = [*zip(scores.T, target.T), (scores.flatten(), target.flatten())]
        return torch.stack([self.score(s[t >= 0], t[t >= 0] == 1) for s, t in columns]).to(self.device)


class LabelAveragePrecision(LabelAUROC):
    """Average precision (C + 1,) per label and over the cells of all labels, as :class:`LabelAUROC`."""

    score = staticmethod(binary_average_precision)
