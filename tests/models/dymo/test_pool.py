"""The log-linear pool against products of powers and a grid of weights."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch

from models.dymo.pool import PoolWeights, log_pool
from tests.networks import under
from tests.rule_cases import (
    ROWS,
    Deterministic,
    Noisy,
    build,
    calibrated,
    masks,
    slow_members,
)
from utils.log_pool import fit_log_pool, pool_nll


@pytest.mark.parametrize("imputer", [Noisy, Deterministic])
def test_pool_equals_twin(imputer: type[Noisy]) -> None:
    """Weights: none on a grid over the simplex is better, and the members of loops have the same loss. Predictions:
    products of powers of probabilities."""
    dymo, batch = calibrated("pool", imputer=imputer)
    pool: Any = dymo.rules.rules[0]
    has_draws = imputer is Noisy
    assert pool.members == ("discard", "impute_all", *(["draws"] if has_draws else []), "lattice")
    assert sorted(pool.weights.weights) == [1, 2]
    scenarios = [batch.replace(missing=masks(seed)) for seed in (1, 2)]
    for k, weights in pool.weights.weights.items():
        rows = [(b, r) for b in scenarios for r in range(ROWS) if int(b.missing[r].sum()) == k]
        logits = np.log([slow_members(dymo, b, r, has_draws) for b, r in rows])
        target = np.array([int(b.target[r]) for b, r in rows])
        best = pool_nll(np.array(weights), logits, target)[0]
        steps = [np.array(w) / 10 for w in itertools.product(range(11), repeat=len(weights)) if sum(w) == 10]
        losses = [pool_nll(w, logits, target)[0] for w in steps]
        assert sum(weights) == pytest.approx(1) and min(weights) >= 0
        assert min(losses) - 2e-3 < best <= min(losses) + 1e-6
        reported = dymo.choices.set_index(["missing", "parameter"])["value"][k]
        assert reported["nll"] == pytest.approx(best, abs=1e-5)
        assert reported["nll_discard"] == pytest.approx(pool_nll(np.eye(len(weights))[0], logits, target)[0], abs=1e-5)
    masked = scenarios[0]
    result = dymo.predict_scenarios(batch, {"s": masked})["pool"]["s"].logits.softmax(1)
    for row in range(0, ROWS, 7):
        weights = pool.weights.weights.get(int(masked.missing[row].sum()), [1.0])
        members = slow_members(dymo, masked, row, has_draws)
        expected = np.prod([p**w for p, w in zip(members, weights)], axis=0)
        np.testing.assert_allclose(result[row].numpy(), expected / expected.sum(), atol=2e-6)


def test_pool_with_all_weight_on_discarding_is_discarding_bit_for_bit() -> None:
    dymo, batch = build("pool")
    pool: Any = dymo.rules.rules[0]
    pool.weights.weights = {k: [1.0, 0.0, 0.0, 0.0] for k in (1, 2)}
    results = dymo.predict_scenarios(batch, under(batch, {"s": masks()}))
    assert torch.equal(results["pool"]["s"].logits, results["discard"]["s"].logits)
    pool.weights.weights = {k: [0.0, 1.0, 0.0, 0.0] for k in (0, 1, 2)}
    results = dymo.predict_scenarios(batch, under(batch, {"s": masks()}))
    assert torch.equal(results["pool"]["s"].logits, results["impute_all"]["s"].logits)


def test_members_without_weight_have_no_influence() -> None:
    logits = torch.tensor([[[1.0, 2.0], [float("-inf"), float("nan")]]])
    assert log_pool(logits, [1.0, 0.0]).tolist() == [[1.0, 2.0]]


def test_weights_of_the_pool_are_optimal_where_the_optimum_is_known() -> None:
    """Members that share the truth out: labels drawn from the pool with weights (0.3, 0.7) give these weights back. A
    member that is always right takes everything."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50_000, 2, 3)) * 2
    truth = np.einsum("j,njc->nc", [0.3, 0.7], logits)
    p = np.exp(truth) / np.exp(truth).sum(1, keepdims=True)
    target = (rng.random((len(p), 1)) > p.cumsum(1)).sum(1)
    np.testing.assert_allclose(fit_log_pool(logits, target), [0.3, 0.7], atol=0.02)
    sure = np.stack([np.zeros((50, 3)), 9 * np.eye(3)[target[:50]], rng.normal(size=(50, 3))], 1)
    assert fit_log_pool(sure, target[:50]).tolist() == [0, 1, 0]


def test_pool_discards_by_name_where_validation_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    dymo, batch = build("pool")
    one = torch.tensor([[True, False, False]] * ROWS)
    one[10:] = False  # ten rows that miss one modality, none that misses two
    dymo.calibrate([(batch, under(batch, {"a": one}))])
    with caplog.at_level(logging.WARNING):
        results = dymo.predict_scenarios(batch, under(batch, {"s": masks()}))
    assert torch.equal(results["pool"]["s"].logits, results["discard"]["s"].logits)
    assert "miss 2 modalities: no scenario of model.validation hides as many" in caplog.text
    assert "miss 1 modality" in caplog.text and "30 distinct validation rows, there are 10" in caplog.text


def test_a_row_of_several_scenarios_is_one_row() -> None:
    weights, logits = PoolWeights("pool"), torch.randn(10, 2, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(4):  # 40 occurrences of ten rows
        weights.observe(1, logits, torch.zeros(10).long(), torch.arange(10))
    assert weights.fit(("discard", "all")) == [] and weights.weights == {}
    for i in range(3):
        weights.observe(1, logits, torch.zeros(10).long(), 10 * i + torch.arange(10))
    assert {row["rows"] for row in weights.fit(("discard", "all"))} == {30}
