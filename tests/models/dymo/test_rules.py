"""Rules beyond the paper against loops over rows, subsets and draws; what they choose comes from validation data."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.batch import Batch
from gaussian_parameter_generation.estimate import estimate
from models.dymo.method import DyMo
from models.dymo.pool import log_pool
from models.dymo.rule import RuleSettings
from models.dymo.selection import COMPARATORS
from models.imputers.base import Imputer, merge
from tests.networks import random_masks, toy_batch, toy_model, under
from utils.log_pool import fit_log_pool, pool_nll

ROWS, VIEWS, DRAWS = 120, 3, 3


class Noisy(Imputer):
    """Recover the true content plus noise, another one for every draw."""

    def __init__(self, truth: Mapping[str, Tensor], scale: float = 1.0) -> None:
        self.truth, self.scale, self.number = truth, scale, 0

    @property
    def has_draws(self) -> bool:
        return True

    @contextmanager
    def drawing(self, number: int) -> Iterator[None]:
        self.number = 1 + number
        yield
        self.number = 0

    def impute(self, inputs: Any, missing: Tensor, index: Any = None, feature_missing: Any = None) -> dict[str, Tensor]:
        assert index is not None
        return {
            name: merge(x, missing[:, i], self.truth[name][index] + self.noise(i, name)[index])
            for i, (name, x) in enumerate(inputs.items())
        }

    def noise(self, i: int, name: str) -> Tensor:
        g = torch.Generator().manual_seed(100 * self.number + i)
        return self.scale * torch.randn(self.truth[name].shape, generator=g)


class Deterministic(Noisy):
    """Without draws."""

    @property
    def has_draws(self) -> bool:
        return False


@functools.cache
def case(seed: int = 0) -> tuple[Any, Any, Batch]:
    """Network with random weights, its parameters, and rows labelled by it from one view: some recoveries help."""
    model = toy_model((2, 2, 2), seed=3, width=8)
    complete = toy_batch(model, ROWS, seed=seed)
    with torch.no_grad():
        labels = model(complete).logits.argmax(1)
    stray = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed)) < 0.2
    batch = complete.replace(target=torch.where(stray, complete.target, labels))
    return model, estimate(model, [batch.replace(target=torch.arange(ROWS) % 4)], progress=False), batch


def build(*names: str, imputer: type[Noisy] = Noisy, scale: float = 1.0, **settings: Any) -> tuple[DyMo, Batch]:
    model, parameters, batch = case()
    rules = RuleSettings(**{"draws": DRAWS} | settings)
    dymo = DyMo(model, imputer(batch.inputs, scale), parameters, comparators=(*COMPARATORS, *names), settings=rules)
    return dymo, batch


def masks(seed: int = 1) -> Tensor:
    return random_masks(ROWS, VIEWS, seed)


def calibrated(*names: str, target: Tensor | None = None, **options: Any) -> tuple[DyMo, Batch]:
    """Rules fitted on two scenarios of the rows."""
    dymo, batch = build(*names, **options)
    seen = batch if target is None else batch.replace(target=target)
    dymo.calibrate([(seen, under(seen, {"a": masks(1), "b": masks(2)}))])
    return dymo, batch


def probabilities(dymo: DyMo, batch: Batch, row: int, shown: list[bool], number: int = 0) -> np.ndarray:
    """Class probabilities (C,) of one row, with the recoveries of one draw in place of what it misses."""
    imputer: Any = dymo.imputer
    imputer.number = number
    completed = imputer.impute(batch.inputs, batch.missing, batch.index)
    imputer.number = 0
    one = Batch(
        {n: x[row : row + 1] for n, x in completed.items()}, torch.tensor([shown]), batch.target[:1], batch.index[:1]
    )
    with torch.no_grad():
        logits = dymo.backbone.fuse(dymo.backbone.encode(one.inputs), one).logits[0].double().numpy()
    p = np.exp(logits - logits.max())
    return p / p.sum()


def slow_members(dymo: DyMo, batch: Batch, row: int, has_draws: bool = True) -> list[np.ndarray]:
    """Probabilities of the members of the pool, one row at a time."""
    missing = batch.missing[row].tolist()
    hidden = [i for i, is_missing in enumerate(missing) if is_missing]
    lattice = []
    for size in range(len(hidden) + 1):
        for added in itertools.combinations(hidden, size):
            lattice.append(probabilities(dymo, batch, row, [m and i not in added for i, m in enumerate(missing)]))
    draws = [probabilities(dymo, batch, row, [False] * VIEWS, 1 + s) for s in range(DRAWS)]
    return [lattice[0], lattice[-1], *([sum(draws) / DRAWS] if has_draws else []), sum(lattice) / len(lattice)]


@pytest.mark.parametrize("imputer", [Noisy, Deterministic])
def test_pool_equals_twin(imputer: type[Noisy]) -> None:
    """Weights: none on a grid over the simplex is better, and the members of loops have the same loss. Predictions:
    products of powers of probabilities."""
    dymo, batch = calibrated("pool", imputer=imputer)
    pool: Any = dymo.rules.rules[0]
    has_draws = imputer is Noisy
    assert pool.members == ("discard", "impute_all", *(["draws"] if has_draws else []), "lattice")
    assert sorted(pool.weights) == [1, 2]
    scenarios = [batch.replace(missing=masks(seed)) for seed in (1, 2)]
    for k, weights in pool.weights.items():
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
        weights = pool.weights.get(int(masked.missing[row].sum()), [1.0])
        members = slow_members(dymo, masked, row, has_draws)
        expected = np.prod([p**w for p, w in zip(members, weights)], axis=0)
        np.testing.assert_allclose(result[row].numpy(), expected / expected.sum(), atol=2e-6)


def test_pool_with_all_weight_on_discarding_is_discarding_bit_for_bit() -> None:
    dymo, batch = build("pool")
    pool: Any = dymo.rules.rules[0]
    pool.weights = {k: [1.0, 0.0, 0.0, 0.0] for k in (1, 2)}
    results = dymo.predict_scenarios(batch, under(batch, {"s": masks()}))
    assert torch.equal(results["pool"]["s"].logits, results["discard"]["s"].logits)
    pool.weights = {k: [0.0, 1.0, 0.0, 0.0] for k in (0, 1, 2)}
    results = dymo.predict_scenarios(batch, under(batch, {"s": masks()}))
    assert torch.equal(results["pool"]["s"].logits, results["impute_all"]["s"].logits)


def test_members_without_weight_have_no_influence() -> None:
    logits = torch.tensor([[[1.0, 2.0], [float("-inf"), float("nan")]]])
    assert log_pool(logits, [1.0, 0.0]).tolist() == [[1.0, 2.0]]


def test_weights_of_the_pool_are_optimal_where_the_optimum_is_known() -> None:
    """Members that share the truth out: labels drawn from the pool with weights (0.3, 0.7) give these weights back. A
    member that is always right takes everything."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200_000, 2, 3)) * 2
    truth = np.einsum("j,njc->nc", [0.3, 0.7], logits)
    p = np.exp(truth) / np.exp(truth).sum(1, keepdims=True)
    target = (rng.random((len(p), 1)) > p.cumsum(1)).sum(1)
    np.testing.assert_allclose(fit_log_pool(logits, target), [0.3, 0.7], atol=0.01)
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
    assert "miss 1 modalities" in caplog.text and "30 validation rows, there are 10" in caplog.text


RULES_OF_VALIDATION = ("pool",)


def test_what_is_chosen_does_not_depend_on_labels_of_the_test() -> None:
    """Permuted test labels change neither a fitted value nor a prediction; permuted validation labels do."""
    dymo, batch = calibrated(*RULES_OF_VALIDATION)
    before = dymo.choices.copy()
    shuffled = batch.replace(target=batch.target.roll(7))
    scenarios = {"s": masks(5)}
    first = dymo.predict_scenarios(batch, under(batch, scenarios))
    second = dymo.predict_scenarios(shuffled, under(shuffled, scenarios))
    assert dymo.choices.equals(before) and len(before)
    for name in RULES_OF_VALIDATION:
        assert torch.equal(first[name]["s"].logits, second[name]["s"].logits)
    other, _ = calibrated(*RULES_OF_VALIDATION, target=batch.target.roll(7))
    assert set(other.choices["rule"]) == set(before["rule"])
    assert not other.choices["value"].equals(before["value"])


def test_rules_never_read_what_is_missing() -> None:
    dymo, batch = calibrated(*RULES_OF_VALIDATION)
    scenario = {"s": masks(5)}
    results = []
    for fill in (0.0, float("nan")):
        inputs = {
            n: merge(x, scenario["s"][:, i], torch.full_like(x, fill)) for i, (n, x) in enumerate(batch.inputs.items())
        }
        seen = batch.replace(inputs=inputs, missing=scenario["s"])
        results.append({n: r["s"].logits for n, r in dymo.predict_scenarios(seen, {"s": seen}).items()})
    for name in RULES_OF_VALIDATION:
        assert torch.equal(results[0][name], results[1][name]) and results[0][name].isfinite().all()
