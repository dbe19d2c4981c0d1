"""Temperature scaling per pattern of missing modalities (Guo et al., ICML 2017, arXiv 1706.04599)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# Of fewer rows than this a temperature of their own would be mostly noise: they share that of all rows.
MIN_ROWS = 30
# log T is searched within these bounds. A model that is always right has no finite optimum.
LOG_BOUNDS = (-4.0, 4.0)


def pattern_of(missing: np.ndarray) -> str:
    """Name of a pattern: the columns that are missing, as in the scenario ``whole_12``; ``none`` without any."""
    separator = "" if len(missing) <= 10 else "_"
    return separator.join(map(str, np.flatnonzero(missing))) or "none"


def negative_log_likelihood(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean over rows of one label, or over the labelled cells of several.

    Args:
        logits: (N, C).
        target: (N,) class numbers, or (N, C) with 1, 0 and negative values for "no label".
    """
    if target.ndim == 1:
        return float(-log_softmax(logits, axis=1)[np.arange(len(target)), target].mean())
    is_labelled = target >= 0
    cells = np.logaddexp(0, logits) - logits * np.where(is_labelled, target, 0)
    return float(cells[is_labelled].mean())


def fit_temperature(logits: np.ndarray, target: np.ndarray) -> float:
    """Temperature T > 0 that minimises the negative log-likelihood of ``logits / T``.

    The loss is convex in 1 / T, so the bounded search finds its minimum.
    """
    logits = logits.astype(np.float64)
    result = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits * np.exp(-log_t), target),
        bounds=LOG_BOUNDS,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(result.x))


@dataclass
class Temperatures:
    """Temperatures fitted on validation data.

    Attributes:
        overall: T of all rows together.
        by_pattern: name of a pattern (:func:`pattern_of`) -> T, of patterns with at least :data:`MIN_ROWS` rows.
        rows: pattern -> validation rows it was fitted on.
    """

    overall: float
    by_pattern: dict[str, float]
    rows: dict[str, int]

    @classmethod
    def fit(cls, logits: Mapping[str, np.ndarray], target: Mapping[str, np.ndarray]) -> Temperatures:
        """Fit one temperature per pattern and one of all.

        Args:
            logits, target: pattern -> (N, C) and (N,) or (N, C), see :func:`negative_log_likelihood`.
        """
        rows = {name: len(value) for name, value in target.items()}
        overall = fit_temperature(np.concatenate(list(logits.values())), np.concatenate(list(target.values())))
        large = [name for name, n in rows.items() if n >= MIN_ROWS]
        return cls(overall, {name: fit_temperature(logits[name], target[name]) for name in large}, rows)

    def of(self, missing: np.ndarray) -> np.ndarray:
        """(N,) temperatures of the rows of a mask (N, M), True = nothing of the modality is observed."""
        patterns, where = np.unique(missing, axis=0, return_inverse=True)
        values = [self.by_pattern.get(pattern_of(pattern), self.overall) for pattern in patterns]
        return np.asarray(values, dtype=np.float64)[where.reshape(-1)]
