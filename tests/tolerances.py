"""Bounds on rounding, for tests that compare two orders of summation.

Processors (vector width, fused multiply-add) and thread counts change the order in which a kernel adds up. A tolerance
that was measured on one processor can therefore fail on another one. Prefer, in this order:

1. ``torch.equal`` where both sides run the same operations on the same shapes;
2. float64 on both sides (the fixture ``float64``), with the default bounds of ``torch.testing.assert_close``;
3. :func:`summation_bound`, or for outputs of networks :func:`assert_close_sums`, where the test is about float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def summation_bound(terms: int, magnitude: float | Tensor, dtype: torch.dtype = torch.float32) -> float:
    """Largest difference between two sums (or inner products) of the same terms in different orders.

    To first order each of them is off by at most ``terms * eps / 2`` times the sum of the absolute terms (Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5 and 4.4); their difference by twice that.

    Args:
        terms: Number of terms of the sum.
        magnitude: Sum of the absolute values of the terms, for an inner product the sum of |x_i y_i|; of a tensor the
            largest entry counts.
        dtype: Type in which both sides compute.

    Returns:
        An absolute tolerance. It contains the sum of the absolute values, not the result, and stays right where terms
        cancel.
    """
    if isinstance(magnitude, Tensor):
        magnitude = float(magnitude.detach().abs().max())
    return terms * torch.finfo(dtype).eps * magnitude


def batch_bound(output: Tensor) -> float:
    """Largest difference of a small float32 network's output for a row alone and for the row in a batch.

    Kernels choose their order of summation by the shape. The bound is that of sums of 256 terms, about the inputs of
    the widest layers of the networks of the tests, of the magnitude of the output (at least 1, the magnitude of
    normalised activations): 3e-5 of it. A row that sees its neighbours or its missing content moves by more than 1e-3.

    Args:
        output: Of the whole batch, any shape; entries that are not finite do not count.
    """
    finite = output.detach()[output.isfinite()].double().abs()
    return summation_bound(256, max([1.0, *finite.tolist()]))


def assert_close_sums(found: Tensor, expected: Tensor, **options: Any) -> None:
    """Compare float32 outputs of a small network that were summed in two orders, within :func:`batch_bound`."""
    torch.testing.assert_close(found, expected, atol=batch_bound(expected), rtol=0, **options)
