"""Measures of a report, as pure functions: area under a degradation curve, contributions of modalities, equity, gap to
an oracle, accuracy by pattern."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch

from utils.metrics import classification_metrics

Subset = frozenset[int]  # numbers of observed modalities


def area_under_curve(rates: Sequence[float], scores: Sequence[float]) -> float:
    """Mean score over the missing rates: the area under the score by the trapezoidal rule, divided by the range.

    A score that does not change has itself as area, whatever the range. It depends on the range: compare models on the
    same rates only.

    Args:
        rates: missing rates, at least two different ones, in any order.
        scores: at these rates.
    """
    order = np.argsort(rates, kind="stable")
    x, y = np.asarray(rates, dtype=float)[order], np.asarray(scores, dtype=float)[order]
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def shapley_values(value: Mapping[Subset, float], m: int) -> np.ndarray:
    """Contributions of M modalities to a score: exact Shapley values over all subsets (Shapley, 1953).

    φ_i = Σ over S without i of |S|! (M - |S| - 1)! / M! · (v(S ∪ i) - v(S)). They add up to v(all) - v(∅).

    Args:
        value: score v of each of the 2^M subsets of observed modalities, the empty one included.

    Returns:
        (M,) float64.
    """
    values = np.zeros(m)
    for i in range(m):
        others = [j for j in range(m) if j != i]
        for size in range(m):
            weight = math.factorial(size) * math.factorial(m - size - 1) / math.factorial(m)
            for members in combinations(others, size):
                subset = frozenset(members)
                values[i] += weight * (value[subset | {i}] - value[subset])
    return values


def sampled_shapley_values(
    value: Callable[[Subset], float], orders: Iterable[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Shapley values estimated from random orders of the modalities (Castro, Gómez and Tejada, 2009).

    In each order, a modality contributes what the score gains when it joins those before it. The mean over orders is
    unbiased.

    Args:
        value: score of a subset.
        orders: K permutations of the M modalities, K at least 2.

    Returns:
        (M,) values, and their standard errors: the standard deviation over the orders, divided by the root of K.
    """
    gains = []
    for order in orders:
        gain, subset = np.zeros(len(order)), Subset()
        for modality in order:
            gain[modality] = value(subset | {modality}) - value(subset)
            subset |= {modality}
        gains.append(gain)
    samples = np.array(gains)
    return samples.mean(0), samples.std(0, ddof=1) / math.sqrt(len(samples))


def equity(contributions: Sequence[float]) -> float:
    """How equally modalities contribute: entropy of the shares of their contributions, divided by log M (Pielou's
    evenness, 1966).

    1 if all contribute the same, 0 if one contributes everything. Modalities that lower the score count as 0; NaN if
    none
    raises it. It asks the question of the Modality Equity Index of MissBench (arXiv 2603.09874) with a formula of this
    project: the numbers cannot be compared.
    """
    positive = np.clip(np.asarray(contributions, dtype=float), 0, None)
    if len(positive) < 2 or not positive.sum() > 0:
        return math.nan
    shares = positive[positive > 0] / positive.sum()
    return float(abs((shares * np.log(shares)).sum()) / math.log(len(positive)))


def oracle_gap(is_right: np.ndarray, is_right_of_oracle: np.ndarray) -> float:
    """Accuracy that a model loses against an oracle that chooses, with the labels, the best subset of each row.

    Args:
        is_right: (N,) bool, of the model.
        is_right_of_oracle: (S, N) bool, of the same model when it sees each of S subsets of the observed modalities;
            the oracle is right where any is.
    """
    return float(np.any(is_right_of_oracle, axis=0).mean() - np.mean(is_right))


def accuracy_by_pattern(patterns: Sequence[str], is_right: np.ndarray) -> dict[str, tuple[float, int]]:
    """Pattern -> accuracy and number of rows, the most frequent pattern first.

    Args:
        patterns: of N rows.
        is_right: (N,) bool.
    """
    names = np.asarray(patterns)
    unique, counts = np.unique(names, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(unique[i]): (float(is_right[names == unique[i]].mean()), int(counts[i])) for i in order}


def score_without_input(target: np.ndarray, num_classes: int, metric: str) -> float:
    """Score of a predictor that sees nothing and knows how frequent classes are: v(∅) of contributions.

    Its logits are the log frequencies of the classes among the targets (of labels, the log odds).

    Args:
        target: (N,) classes, or (N, C) labels (< 0 = not labelled).
        metric: of :data:`utils.metrics.METRICS`.
    """
    labels = torch.from_numpy(target)
    if labels.ndim == 2:
        known = labels >= 0
        logits = torch.logit(((labels > 0) & known).sum(0) / known.sum(0).clamp(min=1), eps=1e-6)
    else:
        logits = torch.log(torch.bincount(labels, minlength=num_classes) / len(labels))
        logits = logits.clamp(min=-1e3)
    task = "multilabel" if labels.ndim == 2 else "multiclass"
    metrics = classification_metrics(task, num_classes, [metric])
    metrics.update(logits.expand(len(labels), -1), labels)
    return float(metrics.compute()[metric])
