"""Certified acceptance against tests in exact arithmetic; its level in simulations."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch

from datasets.batch import Batch
from models.dymo.certified import SEED, Rows, certify
from models.dymo.lattice import exhaustive
from models.dymo.method import DyMo
from tests.networks import under
from tests.rule_cases import (
    ROWS,
    calibrated,
    masks,
)
from utils.certificate import fixed_sequence, margin_p_value, mcnemar_p_value
from utils.noise import hash_seed, row_uniform


def slow_p_value(wrong: list[bool], before: list[bool], margin: float, uniform: list[float]) -> float:
    """Binomial sums of whole numbers, one row at a time."""
    losses = gains = 0
    for one, other, u in zip(wrong, before, uniform):
        losses += one and not other
        gains += (other and not one) or (one == other and u <= margin)
    n = losses + gains
    return sum(math.comb(n, i) for i in range(losses + 1)) / 2**n


@pytest.mark.parametrize("minimum", [1, 500])
def test_certified_equals_twin(minimum: int, caplog: pytest.LogCaptureFixture) -> None:
    """The lattice one subset at a time, rewards of DyMo, tests in exact arithmetic; every row counts once."""
    with caplog.at_level(logging.WARNING):
        dymo, batch = calibrated("certified", minimum_rows=minimum, margin=0.2, delta=0.3)
    rule: Any = dymo.rules.rules[0]
    if minimum == 500:
        assert rule.thresholds == {} and "needs 500 distinct validation rows" in caplog.text
        results = dymo.predict_scenarios(batch, under(batch, {"s": masks()}))
        assert torch.equal(results["certified"]["s"].logits, results["discard"]["s"].logits)
        return
    for k in (1, 2):
        seen: dict[int, tuple[float, bool, bool]] = {}
        for masked in (batch.replace(missing=masks(1)), batch.replace(missing=masks(2))):
            for row in range(ROWS):
                if int(masked.missing[row].sum()) == k and row not in seen:
                    seen[row] = best_of_row(dymo, masked, row)
        uniform = row_uniform(torch.tensor(list(seen)), 1, hash_seed(SEED, k))[:, 0].tolist()
        before = [wrong for _, _, wrong in seen.values()]
        chosen, fewest = math.inf, math.inf
        for threshold in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.0):
            wrong = [w if reward > threshold else d for reward, w, d in seen.values()]
            if slow_p_value(wrong, before, 0.2, uniform) > 0.3:
                break
            if sum(wrong) < fewest:
                chosen, fewest = threshold, sum(wrong)
        assert rule.thresholds[k] == chosen
        reported = dymo.choices.set_index(["missing", "parameter"])["value"][k]
        assert reported["risk_discard"] == pytest.approx(sum(before) / len(seen))
        assert dict(zip(dymo.choices["missing"], dymo.choices["rows"]))[k] == len(seen)
    assert any(math.isfinite(t) for t in rule.thresholds.values()), "nothing is certified: the test shows little"
    masked = batch.replace(missing=masks(5))
    result = dymo.predict_scenarios(batch, {"s": masked})
    scorer_results = result["best_subset"]["s"], result["discard"]["s"]
    for row in range(ROWS):
        reward, _, _ = best_of_row(dymo, masked, row)
        accepts = reward > rule.thresholds.get(int(masked.missing[row].sum()), math.inf)
        expected = scorer_results[0 if accepts else 1]
        assert torch.equal(result["certified"]["s"].logits[row], expected.logits[row])
        for key in ("final_missing", "accepted"):
            assert torch.equal(result["certified"]["s"].extras[key][row], expected.extras[key][row])


def best_of_row(dymo: DyMo, batch: Batch, row: int) -> tuple[float, bool, bool]:
    """Reward of the best subset of one row, whether it is wrong, and whether discarding is."""
    one = batch.replace(
        inputs={n: x[row : row + 1] for n, x in batch.inputs.items()},
        missing=batch.missing[row : row + 1],
        target=batch.target[row : row + 1],
        index=batch.index[row : row + 1],
    )
    tokens, _ = dymo.complete(one)
    (lattice,) = exhaustive(dymo.scorer(), tokens, one.missing)
    best = max(range(lattice.missing.shape[1]), key=lambda a: float(lattice.reward[0, a]))
    wrong = [int(lattice.logits[0, a].argmax()) != int(one.target[0]) for a in (best, 0)]
    return float(lattice.reward[0, best]), wrong[0], wrong[1]


@pytest.mark.parametrize(("margin", "lowest"), [(0.02, 0.03), (0.1, 0.0)])
def test_a_certificate_of_one_threshold_holds_its_level(margin: float, lowest: float) -> None:
    """Where the risk exceeds that of discarding by the margin, at most a share delta of the trials says otherwise."""
    rng, delta, trials, gain = np.random.default_rng(0), 0.1, 1000, 0.04
    wrongly = 0
    for _ in range(trials):
        kind = rng.choice(3, 500, p=[gain + margin, gain, 1 - 2 * gain - margin])
        wrongly += margin_p_value(kind == 0, kind == 1, margin, 1 - rng.random(500)) <= delta
    assert lowest < wrongly / trials <= delta + 3 * math.sqrt(delta * (1 - delta) / trials)


@pytest.mark.parametrize("slope", [0.05, 0.4])
def test_certified_thresholds_hold_their_level(slope: float) -> None:
    """Losses grow as the reward falls: at threshold t, the risk exceeds that of discarding by slope (1 - t)^2. In at
    most a share delta of the trials this is above the margin at the chosen threshold."""
    rng, delta, margin, trials, n = np.random.default_rng(1), 0.1, 0.02, 300, 600
    violated = chosen = 0
    for _ in range(trials):
        reward, draw = rng.random((2, n))
        p_loss = 0.05 + 2 * slope * (1 - reward)
        rows = Rows(np.arange(n), reward, draw < p_loss, draw > 0.95)
        threshold, _ = certify(rows, delta, margin, 1 - rng.random(n))
        chosen += math.isfinite(threshold)
        violated += math.isfinite(threshold) and slope * (1 - threshold) ** 2 > margin
    assert violated / trials <= delta + 3 * math.sqrt(delta * (1 - delta) / trials)
    assert chosen > trials / 2


def test_recoveries_that_help_are_certified() -> None:
    rng = np.random.default_rng(2)
    rows = Rows(np.arange(600), rng.random(600), np.zeros(600, bool), rng.random(600) < 0.3)
    assert certify(rows, 0.1, 0.01, 1 - rng.random(600))[0] == 0


def test_a_sequence_stops_at_the_first_failure() -> None:
    assert fixed_sequence([0.01, 0.04, 0.06, 0.001], 0.05) == 2
    assert fixed_sequence([0.2], 0.05) == 0 and fixed_sequence([0.01, 0.02], 0.05) == 2
    assert mcnemar_p_value(0, 0) == 1
    assert mcnemar_p_value(2, 8) == pytest.approx((1 + 10 + 45) / 1024)
