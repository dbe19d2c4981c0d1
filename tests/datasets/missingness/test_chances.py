"""Chances with a given mean, against enumeration of all patterns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.missingness.chances import (
    conditional_chances,
    draw,
    independent_log_chances,
    logistic_chances,
    logistic_log_chances,
    split_slope,
    to_slope,
    with_slope,
)
from tests.datasets.missingness.all_kinds import is_binomial
from utils.errors import UserError


def slow_chances(p: np.ndarray) -> np.ndarray:
    """Chances to be missing given that something is observed, by a sum over all patterns of one row."""
    total, missing = 0.0, np.zeros(len(p))
    for pattern in itertools.product((0, 1), repeat=len(p)):
        if not all(pattern):
            weight = np.prod([q if hidden else 1 - q for q, hidden in zip(p, pattern)])
            total += weight
            missing += weight * np.array(pattern)
    return missing / total


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 0.999), min_size=2, max_size=5))
def test_conditional_chances_are_those_of_an_enumeration(p: list[float]) -> None:
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array(p))[None]
    np.testing.assert_allclose(conditional_chances(log_p)[0], slow_chances(np.array(p)), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_independent_chances_have_the_rates_after_redrawing(values: list[float]) -> None:
    rates = np.array(values)
    rates *= min(1, (len(rates) - 1) / max(rates.sum(), 1e-9))
    np.testing.assert_allclose(conditional_chances(independent_log_chances(rates)[None])[0], rates, atol=1e-6)


def test_draws_are_those_of_redrawing_rows_that_lose_everything() -> None:
    n, p = 40_000, np.array([0.9, 0.8, 0.95])
    mask = draw(np.tile(np.log(p), (n, 1)), np.random.default_rng(0))
    assert not mask.all(1).any()
    keep = 1 - p.prod()
    for pattern in itertools.product((False, True), repeat=3):
        if not all(pattern):
            chance = np.prod(np.where(pattern, p, 1 - p)) / keep
            assert is_binomial(int((mask == pattern).all(1).sum()), n, chance), pattern


@pytest.mark.parametrize("slope", [-50.0, -1.0, 2.0, 50.0])
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.4, 0.66, 1.0])
def test_intercepts_give_the_mean_rate(slope: float, rate: float) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(300, 3))
    chances = logistic_chances(scores[:, 0], slope, rate)
    assert chances.mean() == pytest.approx(rate, abs=1e-9)
    if 0 < rate < 1:  # the odds change as the slope says
        with np.errstate(divide="ignore"):
            log_odds = np.log(chances) - np.log1p(-chances)
        inside = np.abs(log_odds) < 20
        np.testing.assert_allclose(np.diff(log_odds[inside]), slope * np.diff(scores[inside, 0]), atol=1e-6)
    observable = rng.random((300, 3)) < 0.8
    observable[:5] = False
    if 0 < rate < 0.5:
        lost = conditional_chances(logistic_log_chances(scores, slope, rate, observable))
        assert lost[observable].mean() == pytest.approx(rate, abs=1e-8)
        only = observable & (observable.sum(1, keepdims=True) == 1)
        assert (lost[only] == 0).all() and only.any()


def test_slopes_in_names_read_back() -> None:
    for text, slope in (("1-age", 2.0), ("1", -0.25), ("1-a_slope3", 2.0), ("1-a_slope3", 4.0), ("class", 1e-5)):
        assert split_slope(with_slope(text, slope)) == (text, slope)
    assert with_slope("1", 2.0) == "1" and with_slope("1", 3.0) == "1_slope3"
    for value in ("x", "0", "nan", "inf", "51", None):
        with pytest.raises(UserError, match=r"is no slope: write a number other than 0 between -50 and 50"):
            to_slope(value)
