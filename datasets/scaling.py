"""Mean and deviation for z-scores. A column is constant if its largest value equals its smallest.

The computed deviation of equal numbers need not be 0 in floating point: for many times 0.1 it is about 3e-17, and
division by it would turn an unseen 0.2 into 3.6e15.
"""

from __future__ import annotations

import numpy as np


def is_constant(values: np.ndarray) -> np.ndarray:
    """Whether the columns of (N, ...) have a single value, (...) bool."""
    return values.max(0) == values.min(0)


def mean_and_deviation(values: np.ndarray, ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per column, for ``(x - mean) / deviation``.

    Args:
        values: (N, ...), N >= 1.
        ddof: 0 or 1.

    Returns:
        (...) each, of the floating-point type of the values. A constant column has its value as mean and deviation 1.
    """
    constant = is_constant(values)
    mean = np.where(constant, values[0], values.mean(0)).astype(values.dtype)
    deviation = values.std(0, ddof=ddof) if len(values) > ddof else np.zeros(values.shape[1:])
    return mean, np.where(constant | ~(deviation > 0), 1.0, deviation).astype(values.dtype)


def was_divided_by_rounding_error(values: np.ndarray, ddof: int = 0) -> bool:
    """Whether a column (N,) is constant although its computed deviation is not 0."""
    return bool(is_constant(values)) and len(values) > ddof and bool(values.std(ddof=ddof) > 0)
