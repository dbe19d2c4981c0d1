"""Learn-then-Test (Angelopoulos, Bates, Candès, Jordan, Lei 2021, arXiv 2110.01052) with an exact McNemar test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom


def mcnemar_p_value(losses: int, gains: int) -> float:
    """P(Bin(losses + gains, 1/2) <= losses): exact and one-sided, small where gains outweigh losses; 1 without any."""
    return float(binom.cdf(losses, losses + gains, 0.5))


def margin_p_value(is_wrong: np.ndarray, is_wrong_before: np.ndarray, margin: float, uniform: np.ndarray) -> float:
    """Exact p-value of H: risk > risk before + margin.

    A row is a loss if the rule alone is wrong, and a gain if the rule alone is right. Of the other rows, a share
    ``margin`` drawn at random counts as gains. Under H, P(loss) >= P(gain) + margin >= P(counted as gain), so that the
    losses among the counted rows are at least Bin(n, 1/2), and the p-value is valid for any n.

    Args:
        is_wrong, is_wrong_before: (N,) bool, of the rule and of what it is compared with, in independent rows.
        margin: in [0, 1).
        uniform: (N,) in (0, 1], independent of the labels.
    """
    is_loss = is_wrong & ~is_wrong_before
    is_gain = (~is_wrong & is_wrong_before) | ((is_wrong == is_wrong_before) & (uniform <= margin))
    return mcnemar_p_value(int(is_loss.sum()), int(is_gain.sum()))


def fixed_sequence(p_values: Sequence[float], delta: float) -> int:
    """Number of hypotheses that are rejected when they are tested in this order, each at level ``delta``, until the
    first one is not: the probability that a true one is among them is at most ``delta``."""
    for count, p in enumerate(p_values):
        if p > delta:
            return count
    return len(p_values)
