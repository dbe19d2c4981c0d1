"""Paired bootstrap over test rows: metrics of many resamples of the rows of one set of predictions."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from utils.metrics import AVERAGES, RATIOS, metric_names
from utils.probabilities import BINS, brier_score, calibration_gaps, negative_log_likelihood
from utils.ranking import log_odds

log = logging.getLogger(__name__)

DRAWS = 1000
SEED = 0
# Rows x classes up to which orders and bins are resampled: above, the 1000 resamples of one file take minutes.
MAX_CELLS = 400_000
CHUNK_CELLS = 2**22  # 32 MiB of counts
KEPT_CELLS = 2**24  # 32 MiB of counts
# Metrics of one label that :func:`_of_classes` computes.
OF_CLASSES = (
    *("accuracy", "auroc", "f1_macro", "ece", "recall_macro", "mcc", "gmean"),
    *("average_precision", "nll", "brier", "classwise_ece"),
)


def row_counts(rows: int) -> Iterator[np.ndarray]:
    """Counts of the rows in each resample, in chunks of resamples; the same for equal ``rows``, which pairs models.

    Yields:
        (B, N) float64; the B sum to :data:`DRAWS`.
    """
    if rows * DRAWS > KEPT_CELLS:
        yield from _drawn_counts(rows)
    else:
        yield from (counts.astype(np.float64) for counts in _kept_counts(rows))


@functools.lru_cache(maxsize=4)  # a report asks for the same number of rows for every model and scenario
def _kept_counts(rows: int) -> tuple[np.ndarray, ...]:
    assert rows < 2**16  # so that the counts fit
    return tuple(counts.astype(np.uint16) for counts in _drawn_counts(rows))


def _drawn_counts(rows: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng([SEED, rows])
    size = min(max(CHUNK_CELLS // rows, 1), DRAWS)
    for start in range(0, DRAWS, size):
        drawn = rng.integers(rows, size=(min(size, DRAWS - start), rows))
        yield np.stack([np.bincount(draw, minlength=rows) for draw in drawn]).astype(np.float64)


def resampled(data: Mapping[str, np.ndarray], metric: str) -> np.ndarray | None:
    """A metric on every resample of the rows.

    Args:
        data: ``logits`` (N, C) and ``target`` (N,), or (N, C) for several labels (< 0 = not labelled).
        metric: of :data:`utils.metrics.METRICS`.

    Returns:
        (DRAWS,) values, NaN where a resample defines none; None for other metrics, and (logged) for AUROC, average
        precision and classwise_ece with so many rows and classes that it would take too long.
    """
    logits, target = torch.from_numpy(data["logits"]), torch.from_numpy(data["target"])
    task = "multilabel" if target.ndim == 2 else "multiclass"
    if metric not in (metric_names(task) if task == "multilabel" else OF_CLASSES) or not len(target):
        return None
    if metric.startswith(("auroc", "average_precision", "classwise_ece")) and logits.numel() > MAX_CELLS:
        log.warning(
            "report: no bootstrap of %s on %d rows and %d classes, which would take too long: tests.csv is empty there",
            *(metric, *logits.shape),
        )
        return None
    if metric in ("nll", "brier"):
        value = _mean_score(logits, target, metric)
    elif metric == "classwise_ece":
        value = _classwise_ece(logits, target)
    else:
        value = _of_labels(logits, target, metric) if target.ndim == 2 else _of_classes(logits, target, metric)
    return np.concatenate([value(torch.from_numpy(counts)).numpy() for counts in row_counts(len(target))])


def _mean_score(logits: Tensor, target: Tensor, metric: str) -> Callable[[Tensor], Tensor]:
    scores = {"nll": negative_log_likelihood, "brier": brier_score}[metric](logits, target)
    is_labelled = target.reshape(len(target), -1) >= 0  # (N, C), one column without labels to leave out
    totals = is_labelled.new_zeros(is_labelled.shape, dtype=torch.float64).masked_scatter_(is_labelled, scores).sum(1)
    numbers = is_labelled.sum(1).double()
    return lambda counts: (counts @ totals) / (counts @ numbers)


def _classwise_ece(logits: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
    bins, gaps = calibration_gaps(logits, target)
    is_labelled = target >= 0 if target.ndim == 2 else torch.ones_like(bins, dtype=torch.bool)
    positive = (target == 1).double() if target.ndim == 2 else None

    def of_class(counts: Tensor, c: int) -> Tensor:
        in_bin = torch.nn.functional.one_hot(bins[:, c], BINS) * gaps[:, c, None]
        number = counts @ is_labelled[:, c].double()
        value = (counts @ in_bin).abs().sum(1) / number
        if positive is None:
            return value
        positives = counts @ positive[:, c]
        return torch.where((positives == 0) | (positives == number), torch.nan, value)

    return lambda counts: torch.stack([of_class(counts, c) for c in range(logits.shape[1])]).nanmean(0)


def _auroc(positive: Tensor, negative: Tensor) -> Tensor:
    """AUROC (B,); ties count one half.

    Args:
        positive, negative: (B, G) numbers of rows per distinct score, in ascending order.
    """
    below = negative.cumsum(1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def _average_precision(positive: Tensor, negative: Tensor) -> Tensor:
    """Average precision (B,), NaN without negatives; arguments as for :func:`_auroc`."""
    true_positives, predicted = (part.flip(1).cumsum(1).flip(1) for part in (positive, positive + negative))
    value = (positive * true_positives / predicted.clamp(min=1)).sum(1) / positive.sum(1)
    return torch.where(negative.sum(1) == 0, torch.nan, value)


FORMULAS = {"auroc": _auroc, "average_precision": _average_precision}


def _ranking(metric: str, scores: Tensor, is_positive: Tensor, row: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Counts (B, N) -> values (B,) of a metric of :data:`FORMULAS`.

    Args:
        scores, is_positive: (K,).
        row: (K,) rows of the scores; by default all rows in order.
    """
    _, group = scores.double().unique(return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 1

    def value(counts: Tensor) -> Tensor:
        weights = counts if row is None else counts[:, row]
        zeros = counts.new_zeros(len(counts), groups)
        positive = zeros.index_add(1, group[is_positive], weights[:, is_positive])
        negative = zeros.index_add(1, group[~is_positive], weights[:, ~is_positive])
        return FORMULAS[metric](positive, negative)

    return value


def _of_classes(logits: Tensor, target: Tensor, metric: str) -> Callable[[Tensor], Tensor]:
    classes = logits.shape[1]
    if metric in FORMULAS:
        scores = log_odds(logits)
        chosen = [1] if classes == 2 else range(classes)
        parts = [_ranking(metric, scores[:, c], target == c) for c in chosen]
        return lambda counts: torch.stack([part(counts) for part in parts]).nanmean(0)
    if metric == "ece":
        confidence, guess = logits.float().softmax(1).clamp(max=1 - 2.0**-24).max(1)
        bins = torch.nn.functional.one_hot((confidence * 15).long().clamp(max=14), 15).double()
        gap = bins * (confidence.double() - (guess == target).double())[:, None]
        return lambda counts: (counts @ gap).abs().sum(1) / counts.sum(1)
    if metric == "accuracy":
        is_right = (logits.argmax(1) == target).double()
        return lambda counts: (counts @ is_right) / counts.sum(1)
    hot = torch.nn.functional.one_hot
    guess_hot, true_hot = (hot(part, classes).double() for part in (logits.argmax(1), target))

    def value(counts: Tensor) -> Tensor:
        right, guessed, true = counts @ (guess_hot * true_hot), counts @ guess_hot, counts @ true_hot
        n = counts.sum(1)
        if metric == "f1_macro":
            return (2 * right / (guessed + true)).nanmean(1)
        if metric == "mcc":
            over = ((n**2 - guessed.square().sum(1)) * (n**2 - true.square().sum(1))).sqrt()
            value = (right.sum(1) * n - (guessed * true).sum(1)) / over
            return torch.where(over > 0, value, 0.0)
        recall = right / true
        return recall.nanmean(1) if metric == "recall_macro" else recall.log().nanmean(1).exp()

    return value


def _of_labels(logits: Tensor, target: Tensor, metric: str) -> Callable[[Tensor], Tensor]:
    labelled, true, guess = target >= 0, target > 0, logits > 0
    if metric == "f1_samples":
        guess &= labelled
        f1 = 2 * (guess & true).sum(1) / (guess.sum(1) + true.sum(1)).clamp(min=1)
        has_label = labelled.any(1).double()
        return lambda counts: (counts @ (f1 * has_label)) / (counts @ has_label)
    kinds = (guess & true, guess & ~true & labelled, ~guess & ~true & labelled, ~guess & true)
    cells = [kind.double() for kind in kinds]  # tp, fp, tn, fn: (N, C)
    average = next((average for average in AVERAGES if metric.endswith(f"_{average}")), "")
    measure = metric.removesuffix(f"_{average}")
    average = average or ("macro" if measure in FORMULAS else "micro")
    areas = []
    if measure in FORMULAS:
        columns = [labelled[:, c].nonzero()[:, 0] for c in range(logits.shape[1])]
        areas = [_ranking(measure, logits[rows, c], true[rows, c], rows) for c, rows in enumerate(columns)]
        rows, column = labelled.nonzero(as_tuple=True)
        if average == "micro":
            return _ranking(measure, logits[rows, column], true[rows, column], rows)

    def value(counts: Tensor) -> Tensor:
        tp, fp, tn, fn = (counts @ cell for cell in cells)
        if average == "micro":
            return RATIOS[measure](*(part.sum(1) for part in (tp, fp, tn, fn)))
        values = torch.stack([area(counts) for area in areas], 1) if areas else RATIOS[measure](tp, fp, tn, fn)
        values = torch.where((tp + fn == 0) | (fp + tn == 0), torch.nan, values)
        if average == "macro":
            return values.nanmean(1)
        weights = torch.where(values.isnan(), 0.0, tp + fn)
        return (weights * values.nan_to_num()).sum(1) / weights.sum(1)

    return value
