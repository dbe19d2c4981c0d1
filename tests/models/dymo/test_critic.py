"""The critic against densities that are known and single rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.batch import Batch
from models.dymo.critic import Network, train_network
from models.dymo.evidence import examples_of
from models.dymo.method import DyMo
from models.dymo.rule import Examples
from tests.networks import under
from tests.rule_cases import (
    DRAWS,
    ROWS,
    VIEWS,
    Deterministic,
    Noisy,
    build,
    masks,
    outputs_of,
)
from utils.errors import UserError
from utils.subsets import mask_code


def test_critic_learns_the_ratio_of_densities() -> None:
    """Real N(0, 1) against recovered N(1, 1): the logarithm of the ratio is 1/2 - x. The global random state stays
    as it is."""
    g = torch.Generator().manual_seed(0)
    n, zeros = 6000, torch.zeros(6000, 1)
    real = torch.randn(n, 1, generator=g)
    examples = Examples(real, 1 + torch.randn(n, 1, generator=g), zeros, torch.zeros(n, 2).bool(), torch.arange(n))
    state = torch.get_rng_state()
    network, about = train_network(examples, 16, 8, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.linspace(-1, 2, 13)[:, None]
    with torch.no_grad():
        actual = network(x, torch.zeros(13, 1), torch.zeros(13, 2).bool())
        weights = network(examples.recovered, zeros, examples.missing).exp()
    np.testing.assert_allclose(actual, (0.5 - x)[:, 0], atol=0.3)
    assert float(weights.mean()) == pytest.approx(1, abs=0.1), "the mean weight of draws from q is 1"
    assert about["loss"] < math.log(2) and about["rows"] == pytest.approx(0.9 * n, rel=0.05)
    # Real and recovered rows that are alike: no epoch is better than none, and all weights are 1.
    alike = Examples(real, torch.randn(n, 1, generator=g), zeros, examples.missing, examples.index)
    network, about = train_network(alike[torch.arange(300)], 16, 2, seed=0)
    with torch.no_grad():
        assert about["loss"] > 0.68 and network(x, torch.zeros(13, 1), torch.zeros(13, 2).bool()).abs().max() < 0.3


def test_critic_without_rows_to_learn_from_leaves_every_weight_at_one() -> None:
    zeros = torch.zeros(2, 1)
    examples = Examples(zeros, zeros + 1, zeros, torch.zeros(2, 2).bool(), torch.arange(2))
    held_out = next(
        network
        for network, about in (train_network(examples, 8, 2, seed=seed) for seed in range(2000))
        if about["rows"] == 0
    )
    with torch.no_grad():
        assert held_out(zeros, zeros, torch.zeros(2, 2).bool()).tolist() == [0, 0]


def with_critic(**options: Any) -> tuple[DyMo, Batch]:
    """A critic of random weights, so that its ratios differ widely."""
    dymo, batch = build("critic", **options)
    critic: Any = dymo.rules.critic
    torch.manual_seed(0)
    critic.network = Network(5, VIEWS, 7).eval()
    for p in critic.network.parameters():
        torch.nn.init.normal_(p, std=0.6)
    critic.network.layers[4].bias.data.fill_(2.0)
    critic.network.mean.normal_()
    critic.network.scale.uniform_(0.5, 2)
    return dymo, batch


def slow_ratio(state: Mapping[str, Tensor], features: np.ndarray, observed: np.ndarray, missing: list[bool]) -> float:
    """D / (1 - D) of one row, layer by layer."""
    s = {name: value.double().numpy() for name, value in state.items()}
    x = (np.concatenate([features, observed]) - s["mean"]) / s["scale"]
    x = np.concatenate([x, np.array(missing, dtype=float)])
    for layer in (0, 2):
        x = s[f"layers.{layer}.weight"] @ x + s[f"layers.{layer}.bias"]
        x = x / (1 + np.exp(-x))
    d = 1 / (1 + np.exp(-(s["layers.4.weight"] @ x + s["layers.4.bias"])[0]))
    return float(d / (1 - d))


@pytest.mark.parametrize("imputer", [Noisy, Deterministic])
def test_critic_equals_twin(imputer: type[Noisy]) -> None:
    dymo, batch = with_critic(imputer=imputer)
    masked = batch.replace(missing=masks())
    result = dymo.predict_scenarios(batch, {"s": masked})["critic"]["s"].logits.softmax(1)
    state = dymo.rules.critic.network.state_dict()  # type: ignore[union-attr]
    shares = []
    for row in range(0, ROWS, 4):
        missing = masked.missing[row].tolist()
        discard, observed = outputs_of(dymo, masked, row, missing)
        draws = [outputs_of(dymo, masked, row, [False] * VIEWS, 1 + s) for s in range(DRAWS)]
        draws = draws if imputer is Noisy else [outputs_of(dymo, masked, row, [False] * VIEWS)]
        ratios = [slow_ratio(state, z, observed, missing) for _, z in draws]
        share = min(1.0, sum(ratios) / len(ratios)) if any(missing) else 0.0
        mean = sum(r * p for r, (p, _) in zip(ratios, draws)) / sum(ratios)
        np.testing.assert_allclose(result[row], share * mean + (1 - share) * discard, atol=5e-6)
        shares.append(share)
    assert min(s for s in shares if s) < 0.5 and max(shares) == 1, "the test needs both cases"


def test_examples_are_features_of_simulated_masks() -> None:
    """Of every row: the true content, its recovery under a random mask, and what the mask leaves."""
    dymo, batch = build("critic")
    examples = examples_of(dymo, [batch], seed=3)
    assert len(examples) == ROWS and examples.missing.any(1).all() and not examples.missing.all(1).any()
    assert set(mask_code(examples.missing).tolist()) == {1, 2, 3, 4, 5, 6}
    masked = batch.replace(missing=examples.missing)
    for row in range(0, ROWS, 9):
        for features, shown, source, number in (
            (examples.real, [False] * VIEWS, batch, 0),
            (examples.recovered, [False] * VIEWS, masked, 1),
            (examples.observed, examples.missing[row].tolist(), batch, 0),
        ):
            expected = outputs_of(dymo, source, row, shown, number)[1]
            np.testing.assert_allclose(features[row], expected, atol=2e-6)
    half = batch.replace(missing=torch.arange(ROWS)[:, None] % 2 < torch.tensor([[1, 0, 0]]))
    assert (examples_of(dymo, [half], seed=3).index % 2 == 1).all(), "incomplete rows are left out"
    with pytest.raises(UserError, match="there are none: leave it out"):
        examples_of(dymo, [batch.replace(missing=torch.tensor([[True, False, False]]).expand(ROWS, -1))], seed=3)


def test_critic_survives_its_file(tmp_path: Path) -> None:
    dymo, batch = with_critic()
    before = dymo.predict_scenarios(batch, under(batch, {"s": masks()}))["critic"]["s"].logits
    path = tmp_path / "critic.safetensors"
    dymo.learner.save(path, {"checkpoint": "abc"})
    other, _ = build("critic", critic_width=7)
    assert "critic" not in other.predict_scenarios(batch, under(batch, {"s": masks()}))
    assert other.learner.load(path)["checkpoint"] == "abc"
    assert torch.equal(other.predict_scenarios(batch, under(batch, {"s": masks()}))["critic"]["s"].logits, before)
    with pytest.raises(UserError, match="holds no critic of 5 features and 3 modalities"):
        build("critic", critic_width=8)[0].learner.load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="holds no critic"):
        other.learner.load(path)


def test_what_is_learned_does_not_depend_on_labels() -> None:
    one, batch = build("critic", critic_epochs=2)
    other, _ = build("critic", critic_epochs=2)
    one.learner.learn([batch])
    other.learner.learn([batch.replace(target=batch.target.roll(7))])
    states = [d.rules.critic.network.state_dict() for d in (one, other)]  # type: ignore[union-attr]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
