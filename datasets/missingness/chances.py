"""Chances to be missing: logistic ones with a given mean, and independent ones under which every row keeps something.

Each modality j of a row is missing with chance p_j, independently, on condition that the row does not lose everything:
a row with nothing left is drawn again. With Q = Π p_j, the conditional chance of j is (p_j - Q) / (1 - Q). Functions
take log p, which stays exact where p is near 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_expit

from utils.errors import UserError

SLOPE = 2.0  # change of the log odds per unit of a score
STEEPEST = 50.0
SLOPE_NAME = re.compile(r"(.*)_slope(-?[\d.]+(?:e[+-]?\d+)?)", re.DOTALL)


def solve_intercept(mean_rate: Callable[[float], float], rate: float, widest: float) -> float:
    """Intercept at which ``mean_rate``, an increasing function, is the rate; the nearest if the rate is out of reach.

    Args:
        widest: |intercept| beyond which nothing changes.
    """
    if mean_rate(-widest) >= rate:
        return -widest
    if mean_rate(widest) <= rate:
        return widest
    return float(brentq(lambda intercept: mean_rate(intercept) - rate, -widest, widest, xtol=1e-10))


def widest_intercept(linear: np.ndarray) -> float:
    """|intercept| at which each chance σ(intercept + linear) is 0 or 1 within rounding."""
    return 60 + float(np.abs(linear).max(initial=0))


def logistic_chances(scores: np.ndarray, slope: float, rate: float) -> np.ndarray:
    """(n,) chances σ(a + slope score) with mean ``rate``."""
    if rate in (0, 1):
        return np.full(len(scores), float(rate))
    linear = slope * scores
    intercept = solve_intercept(lambda a: float(expit(a + linear).mean()), rate, widest_intercept(linear))
    return expit(intercept + linear)


def logistic_log_chances(scores: np.ndarray, slope: float, rate: float, observable: np.ndarray) -> np.ndarray:
    """(n, M) log chances whose conditional chances have mean ``rate`` over what the source has.

    Args:
        scores: (n, M).
        observable: (n, M) bool, modalities that the source has; the others get chance 1.
    """

    def log_p(intercept: float) -> np.ndarray:
        return np.where(observable, log_expit(intercept + linear), 0.0)

    linear = slope * scores

    def mean_rate(intercept: float) -> float:
        return float(conditional_chances(log_p(intercept))[observable].mean())

    return log_p(solve_intercept(mean_rate, rate, widest_intercept(linear)))


def conditional_chances(log_p: np.ndarray) -> np.ndarray:
    """(n, M) chances to be missing on condition that the row does not lose everything."""
    total = log_p.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # chances of 0, and rows of which the source has nothing
        lost = np.where(np.isneginf(log_p), 0, np.exp(log_p) * -np.expm1(total - log_p))
        return lost / -np.expm1(total)


def independent_log_chances(rates: np.ndarray) -> np.ndarray:
    """(M,) log chances whose conditional chances are the ``rates``.

    From r_j = (p_j - Q) / (1 - Q) follows p_j = 1 - (1 - r_j) e with e = 1 - Q, and e solves Π (1 - (1 - r_j) e) =
    1 - e. It has a solution in (0, 1] if Σ (1 - r_j) > 1: more than one modality is observed on average. At Σ = 1,
    exactly one is: the limit of small e.
    """
    observed = 1 - rates
    smallest = 1e-9

    def excess(e: float) -> float:
        with np.errstate(divide="ignore"):
            return float(-np.expm1(np.log1p(-observed * e).sum()) / e - 1)

    e = smallest if excess(smallest) <= 0 else 1.0 if excess(1.0) >= 0 else float(brentq(excess, smallest, 1.0))
    with np.errstate(divide="ignore"):
        return np.log1p(-observed * e)


def draw(log_p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, M) bool, True = missing: independent draws on condition that no row loses everything.

    Modalities are drawn one after the other, from their chance given those before, so that no row is drawn twice.
    """
    u = rng.random(log_p.shape)
    mask = np.zeros(log_p.shape, dtype=bool)
    is_empty = np.ones(len(log_p), dtype=bool)  # nothing observed yet
    remaining = np.cumsum(log_p[:, ::-1], 1)[:, ::-1]  # log chance that this modality and all later ones are missing
    for j in range(log_p.shape[1]):
        p = np.exp(log_p[:, j])
        later = remaining[:, j + 1] if j + 1 < log_p.shape[1] else np.zeros(len(p))
        with np.errstate(invalid="ignore"):
            given = p * np.expm1(later) / np.expm1(remaining[:, j])
        mask[:, j] = u[:, j] < np.where(is_empty, given, p)
        is_empty &= mask[:, j]
    return mask


def split_slope(text: str) -> tuple[str, float]:
    """A name without its slope, and the slope: ``1-age_slope3`` -> (``1-age``, 3).

    Raises:
        UserError: an impossible slope.
    """
    match = SLOPE_NAME.fullmatch(text)
    return (text, SLOPE) if match is None else (match[1], to_slope(match[2]))


def to_slope(value: object) -> float:
    """
    Raises:
        UserError: no number, 0, or a number beyond :data:`STEEPEST`.
    """
    try:
        slope = float(str(value))
    except ValueError:
        slope = np.nan
    if not 0 < abs(slope) <= STEEPEST:
        raise UserError(f"'{value}' is no slope: write a number other than 0 between -{STEEPEST:g} and {STEEPEST:g}")
    return slope


def with_slope(text: str, slope: float) -> str:
    """A name with its slope, which is left out if it is the default and ``text`` does not end like one."""
    return text if slope == SLOPE and not SLOPE_NAME.fullmatch(text) else f"{text}_slope{slope!r}".removesuffix(".0")


def slope_caption(slope: float) -> str:
    """The slope in captions, empty for the default."""
    return "" if slope == SLOPE else f" (slope {slope:g})"
