"""Mean and deviation for z-scores. A column is constant if its largest value equals its smallest.

The deviation of equal numbers need not be 0 in floating point: that of many times 0.1 is about 3e-17, and dividing by
it would make 3.6e15 of an unseen 0.2.
"""

from __future__ import annotations

import numpy as np


def is_constant(values: np.ndarray) -> np.ndarray:
    """Whether each column of (N, ...) holds one value only."""
    return values.max(0) == values.min(0)


def mean_and_deviation(values: np.ndarray, ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, for ``(x - mean) / deviation``.

    Args:
        values: (N, ...), N >= 1.
        ddof: 0 or 1.

    Returns:
        Both (...), of the type of the values (floating point). A constant column has its value as the mean and the
        deviation 1.
    """
    constant = is_constant(values)
    mean = np.where(constant, values[0], values.mean(0)).astype(values.dtype)
    deviation = values.std(0, ddof=ddof) if len(values) > ddof else np.zeros(values.shape[1:])
    return mean, np.where(constant | ~(deviation > 0), 1.0, deviation).astype(values.dtype)


def was_divided_by_rounding_error(values: np.ndarray, ddof: int = 0) -> bool:
    """Whether a column (N,) is constant although its computed deviation is not 0."""
    return bool(is_constant(values)) and len(values) > ddof and bool(values.std(ddof=ddof) > 0)
