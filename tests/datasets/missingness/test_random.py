"""Random masks: golden values, properties, names."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.missingness import Rows, parse_scenario
from datasets.missingness.random import Random, random_mask

quick = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize(
    ("k", "first_row", "columns"),
    [  # docs/reference/datasets.md §14.2: default_rng(2025), N = 7,000, M = 5
        (1, "FTFFF", [1393, 1389, 1351, 1472, 1395]),
        (2, "FTTFF", [2762, 2764, 2830, 2792, 2852]),
        (3, "FTTTF", [4232, 4159, 4206, 4167, 4236]),
        (4, "FTTTT", [5634, 5571, 5621, 5578, 5596]),
    ],
)
def test_exact_generator_gives_the_golden_masks(k: int, first_row: str, columns: list[int]) -> None:
    mask = parse_scenario(f"random_{k / 5:g}").generate(Rows(7000, 5, 2025))
    assert mask.dtype == bool and mask.shape == (7000, 5)
    assert "".join("FT"[int(v)] for v in mask[0]) == first_row
    assert mask.sum(0).tolist() == columns
    assert (mask.sum(1) == k).all() and mask.mean() == k / 5


def test_each_split_has_its_own_seed(composed) -> None:
    """2025, 2026, 2027 for train, val, test (docs/reference/datasets.md §12.2.2)."""
    from trainers.config.build import build_data

    data = build_data(composed())
    data.prepare()
    scenario = parse_scenario("random_0.4")
    for offset, split in enumerate(("train", "val", "test")):
        mask = data.mask(split, scenario)
        draws = np.random.default_rng(2025 + offset).random(mask.shape)
        expected = np.zeros_like(mask)
        for row, values in enumerate(draws):
            expected[row, sorted(range(5), key=lambda i: values[i])[:2]] = True
        assert np.array_equal(mask, expected), split


@quick
@given(st.integers(1, 60), st.integers(2, 7), st.data(), st.integers(0, 2**32 - 1))
def test_exact_masks_have_exactly_their_rate_and_are_nested(n: int, m: int, data: st.DataObject, seed: int) -> None:
    counts = sorted(data.draw(st.sets(st.integers(0, m - 1), min_size=1, max_size=3)))
    masks = [random_mask(n, m, k / m, "exact", seed) for k in counts]
    for k, mask in zip(counts, masks):
        assert mask.shape == (n, m) and mask.dtype == bool
        assert (mask.sum(1) == k).all()
    for small, large in pairwise(masks):
        assert (small <= large).all(), "what is missing at a lower rate is missing at a higher one"
    assert np.array_equal(masks[0], random_mask(n, m, counts[0] / m, "exact", seed))


@quick
@given(st.integers(100, 600), st.integers(2, 6), st.floats(0, 0.999), st.integers(0, 2**32 - 1))
def test_global_masks_hit_the_rate_and_keep_one_in_every_row(n: int, m: int, rate: float, seed: int) -> None:
    mask = random_mask(n, m, rate, "global", seed)
    assert mask.shape == (n, m) and (~mask).any(1).all()
    # One modality a row must stay, so nothing above (m - 1) / m can be had.
    assert abs(mask.mean() - min(rate, (m - 1) / m)) <= max(0.005, 1 / (n * m)) + 1e-12


@quick
@given(st.integers(1, 200), st.integers(1, 6), st.floats(0, 0.95), st.integers(0, 2**32 - 1))
def test_bernoulli_masks_never_leave_a_row_empty(n: int, m: int, rate: float, seed: int) -> None:
    mask = random_mask(n, m, rate, "bernoulli", seed)
    assert mask.shape == (n, m) and (~mask).any(1).all()


def test_bernoulli_rate_is_that_of_rows_that_are_not_empty() -> None:
    """E = (r - r^5) / (1 - r^5) = 0.702 at r = 0.8 (docs/reference/datasets.md §12.2.2); 100,000 rows, 5 standard
    errors of a row.
    """
    rate = 0.8
    expected = (rate - rate**5) / (1 - rate**5)
    assert expected == pytest.approx(0.702, abs=1e-3)
    mask = random_mask(100_000, 5, rate, "bernoulli", 0)
    assert abs(mask.mean() - expected) < 5 * mask.mean(1).std() / math.sqrt(len(mask))


def test_global_rows_vary_in_their_number() -> None:
    counts = np.bincount(random_mask(7000, 5, 0.4, "global", 1).sum(1), minlength=6)
    assert (counts[:5] > 0).all() and counts[5] == 0


def test_every_column_is_hit_alike() -> None:
    """Shares of the columns under each generator, 20,000 rows: five standard deviations of a binomial."""
    for generator in ("exact", "global", "bernoulli"):
        shares = random_mask(20_000, 5, 0.4, generator, 3).mean(0)
        assert np.abs(shares - shares.mean()).max() < 5 * math.sqrt(0.24 / 20_000), generator


@pytest.mark.parametrize(
    ("spec", "name", "rate", "generator"),
    [
        ("random_0.8", "random_0.8", 0.8, "exact"),
        ("random_exact_0.80", "random_0.8", 0.8, "exact"),
        ("random_global_0.25", "random_global_0.25", 0.25, "global"),
        ("random_bernoulli_0.8", "random_bernoulli_0.8", 0.8, "bernoulli"),
        ({"kind": "random", "rate": 0.4, "generator": "global"}, "random_global_0.4", 0.4, "global"),
        ({"kind": "random", "rate": 0}, "random_0", 0.0, "exact"),
        ("random_0.12345678", "random_0.12345678", 0.12345678, "exact"),
    ],
)
def test_random_patterns(spec: Any, name: str, rate: float, generator: str) -> None:
    scenario = parse_scenario(spec)
    assert scenario == Random(rate, generator) and scenario.name == name


@pytest.mark.parametrize(("rate", "m", "share"), [(0.5, 5, "0.4"), (0.4, 5, None), (0.5, 2, None), (0.3, 3, "0.333")])
def test_a_rate_that_cannot_be_had_is_remarked_on(rate: float, m: int, share: str | None) -> None:
    scenario = parse_scenario(f"random_{rate}")
    remark = scenario.remark(m)
    assert (remark is None) == (share is None)
    mask = scenario.generate(Rows(50, m, 1))
    assert mask.mean() == pytest.approx(float(share or rate), abs=1e-3)
    assert share is None or f"a rate of {share}," in str(remark)
    assert parse_scenario(f"random_global_{rate}").remark(m) is None


@pytest.mark.parametrize(
    ("name", "m", "rate"),
    [
        ("random_0.2", 6, 1 / 6),
        ("random_global_0.8", 2, 0.5),
        ("random_global_0.8", 6, 0.8),
        ("random_bernoulli_0.8", 2, (0.8 - 0.64) / (1 - 0.64)),
        ("random_bernoulli_0.3", 5, (0.3 - 0.3**5) / (1 - 0.3**5)),
    ],
)
def test_the_realised_rate_is_the_one_expected_of_so_many_modalities(name: str, m: int, rate: float) -> None:
    scenario = parse_scenario(name)
    mask = scenario.generate(Rows(20_000, m, 5))
    assert scenario.expected_rate(m) == pytest.approx(rate)
    assert scenario.realised_rate(mask) == pytest.approx(mask.mean()) == pytest.approx(rate, abs=0.006)
    has_remark = abs(rate - scenario.named_rate) > 0.01
    assert (scenario.remark(m) is not None) == has_remark
    assert (scenario.remark(m, scenario.realised_rate(mask)) is not None) == has_remark
    assert not has_remark or f"'{name}' has a rate of {rate:.3g}" in str(scenario.remark(m))
