"""Log-linear pool of predictions: p(y) proportional to the product of p_j(y)^w_j (Genest & Zidek, Statistical Science
1986), with weights w >= 0 that sum to 1."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

# Weights below this are rounding errors of the search.
SMALLEST_WEIGHT = 1e-6


def pool_nll(weights: np.ndarray, logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean negative log-likelihood of a pool and its gradient.

    Args:
        weights: (J,).
        logits: (N, J, C), log-probabilities of the J members up to a constant.
        target: (N,) class numbers.

    Returns:
        the loss, which is convex in the weights, and its gradient (J,).
    """
    pooled = np.einsum("j,njc->nc", weights, logits)
    of_target = logits[np.arange(len(target)), :, target]  # (N, J)
    loss = float((logsumexp(pooled, axis=1) - of_target @ weights).mean())
    expected = np.einsum("nc,njc->nj", softmax(pooled, axis=1), logits)
    return loss, (expected - of_target).mean(0)


def fit_log_pool(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights (J,) with the smallest :func:`pool_nll` on the simplex; no member alone has a smaller one.

    The vertices are compared last, so that a search that stops early is never worse than the best member. The first of
    equals wins.
    """
    logits = logits.astype(np.float64)
    count = logits.shape[1]
    result = minimize(
        pool_nll,
        np.full(count, 1 / count),
        args=(logits, target),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-10, "maxiter": 200},
    )
    inner = np.where(result.x < SMALLEST_WEIGHT, 0, result.x)
    candidates = [*np.eye(count), inner / inner.sum()]
    losses = [pool_nll(w, logits, target)[0] for w in candidates]
    return candidates[int(np.argmin(losses))]
