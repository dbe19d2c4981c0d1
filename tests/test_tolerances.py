"""The bounds for two orders of summation hold, and are not so wide that they hold for other sums."""

from __future__ import annotations

import pytest
import torch

from tests.tolerances import batch_bound, summation_bound


@pytest.mark.parametrize("terms", [4, 100, 3000])
def test_two_orders_of_summation_stay_within_the_bound(terms: int) -> None:
    """Sums one after the other, forwards and backwards, of terms that cancel, against float64."""
    generator = torch.Generator().manual_seed(terms)
    for _ in range(20):
        x, y = torch.randn(2, terms, generator=generator) * 100
        orders = [(a * b).cumsum(0)[-1] for a, b in ((x, y), (x.flip(0), y.flip(0)))]
        exact = x.double() @ y.double()
        magnitude = (x * y).abs().sum()
        bound = summation_bound(terms, magnitude)
        assert abs(orders[0] - orders[1]) <= bound and all(abs(order - exact) <= bound for order in orders)
        # Not so wide that it says nothing: far below one typical term of a hundred.
        assert terms > 100 or bound < 2e-3 * magnitude / terms
    assert summation_bound(terms, 2.0, torch.float64) == terms * 2.0**-51


def test_the_bound_for_batches_scales_with_the_output() -> None:
    assert batch_bound(torch.tensor([0.1, float("nan"), -float("inf")])) == 256 * 2.0**-23
    assert batch_bound(torch.tensor([True, False])) == batch_bound(torch.zeros(0)) == 256 * 2.0**-23
    assert batch_bound(torch.tensor([[2.0], [-1000.0]])) == 256_000 * 2.0**-23
