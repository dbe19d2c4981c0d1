"""Temperatures: against a grid, and what they must recover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import log_loss

from utils.calibration import MIN_ROWS, Temperatures, fit_temperature, negative_log_likelihood, pattern_of


def drawn(n: int, scale: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``scale`` times too confident, and targets drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2, (n, 4))
    target = np.array([rng.choice(4, p=p) for p in softmax(true, axis=1)])
    return (scale * true).astype(np.float32), target


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_factor_of_overconfidence(scale: float) -> None:
    logits, target = drawn(20_000, scale)
    assert fit_temperature(logits, target) == pytest.approx(scale, rel=0.05)


def test_the_loss_is_that_of_scikit_learn_and_its_minimum_that_of_a_grid() -> None:
    logits, target = drawn(300, 2.0, 1)
    assert negative_log_likelihood(logits, target) == pytest.approx(
        log_loss(target, softmax(logits.astype(np.float64), axis=1), labels=range(4)), rel=1e-6
    )
    grid = np.exp(np.linspace(-2, 3, 2001))
    losses = [negative_log_likelihood(logits / t, target) for t in grid]
    assert fit_temperature(logits, target) == pytest.approx(grid[int(np.argmin(losses))], rel=0.005)


def test_labels_that_are_not_known_do_not_count() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(0, 2, (5000, 3))
    target = (rng.random((5000, 3)) < expit(true)).astype(np.float32)
    temperature = fit_temperature(2 * true, target)
    assert temperature == pytest.approx(2, rel=0.1)
    hidden = target.copy()
    hidden[:, 2] = -1
    spoiled = 2 * true
    spoiled[:, 2] = 1e3
    assert fit_temperature(spoiled, hidden) == pytest.approx(fit_temperature(2 * true[:, :2], target[:, :2]), rel=1e-4)


def test_each_pattern_has_its_temperature_and_small_ones_that_of_all() -> None:
    sharp, target = drawn(4000, 4.0, 3)
    plain, other = drawn(4000, 1.0, 4)
    few = MIN_ROWS - 1
    fitted = Temperatures.fit(
        {"none": plain, "1": sharp, "02": sharp[:few]}, {"none": other, "1": target, "02": target[:few]}
    )
    missing = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 0]], dtype=bool)
    assert set(fitted.by_pattern) == {"none", "1"} and fitted.rows["02"] == few
    expected = [fitted.by_pattern["none"], fitted.by_pattern["1"], fitted.overall, fitted.overall]
    assert fitted.of(missing).tolist() == expected
    assert 1 < fitted.overall < 4 and fitted.by_pattern["1"] == pytest.approx(4, rel=0.1)


def test_a_model_that_is_always_right_has_a_finite_temperature() -> None:
    target = np.arange(40) % 4
    assert 0 < fit_temperature(10 * np.eye(4)[target], target) < 1


def test_patterns_are_named_as_scenarios_are() -> None:
    assert pattern_of(np.array([False, True, True])) == "12"
    assert pattern_of(np.zeros(3, dtype=bool)) == "none"
    many = np.zeros(12, dtype=bool)
    many[[1, 11]] = True
    assert pattern_of(many) == "1_11"
