"""Nested rates of one modality, as in the stress tests of Resilient-VT."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.missingness import Rows, parse_scenario, parse_scenarios
from utils.errors import UserError

NAMES = [f"m{i}" for i in range(5)]

quick = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize(
    ("n", "rows"),
    [  # docs/reference/datasets.md §14.3: seed 42, no natural missingness
        (8, {0.25: [0, 2], 0.5: [0, 2, 4, 6], 0.75: [0, 1, 2, 4, 5, 6]}),
        (
            20,
            {
                0.25: [0, 3, 7, 11, 14],
                0.5: [0, 3, 4, 5, 7, 11, 12, 14, 16, 19],
                0.75: [0, 3, 4, 5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19],
            },
        ),
    ],
)
def test_nested_masks_are_the_published_ones_on_every_split(n: int, rows: dict[float, list[int]]) -> None:
    for (rate, expected), column, split in zip(rows.items(), (0, 1, 1), range(3)):
        scenario = parse_scenario(f"nested_{column}_{rate}")
        mask = scenario.generate(Rows(n, 2, scenario.seed(2025, split)))
        assert np.flatnonzero(mask[:, column]).tolist() == expected and not mask[:, 1 - column].any()
    assert parse_scenario("nested_0_0.5").seed(2026, 0) == 43


@quick
@given(st.integers(1, 80), st.integers(2, 4), st.data(), st.integers(0, 2**32 - 1))
def test_nested_masks_count_what_was_never_there_and_keep_the_last_of_a_row(
    n: int, m: int, data: st.DataObject, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    column, share = data.draw(st.integers(0, m - 1)), data.draw(st.sampled_from([0.0, 0.1, 0.6]))
    rates = sorted(data.draw(st.sets(st.integers(0, 100), min_size=2, max_size=4)))
    absent = rng.random((n, m)) < share
    absent[absent.all(1), column] = False
    before = absent.copy()
    scenarios = [parse_scenario({"kind": "nested", "modality": column, "rate": rate / 100}) for rate in rates]
    masks = [s.generate(Rows(n, m, seed, absent=absent)) for s in scenarios]
    only = ~absent[:, column] & np.delete(absent, column, 1).all(1)
    natural = absent[:, column]
    for rate, mask in zip(rates, masks):
        whole_mask = mask | absent
        assert not whole_mask.all(1).any() and not np.delete(mask, column, 1).any()
        assert not (mask[:, column] & natural).any(), "what was never there is not drawn again"
        wanted = n * rate // 100
        assert whole_mask[:, column].sum() == min(max(wanted, natural.sum()), n - only.sum())
    for small, large in pairwise(masks):
        assert (small <= large).all()
    if share == 0:  # the reference's way: k ones before zeros, shuffled
        for rate, mask in zip(rates, masks):
            ones = (np.arange(n) < n * rate // 100).astype(int)
            np.random.RandomState(seed).shuffle(ones)
            assert np.array_equal(mask[:, column], ones == 1)
    assert np.array_equal(absent, before)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("nested_0", "'' is not a rate"),
        ("nested_x_0.5", "'x' is no column number"),
        ("nested_0_1.5", r"outside \[0, 1\]"),
        ("nested_5_0.5", "there is no modality 5"),
        ({"kind": "nested", "rate": 0.5}, "no column number"),
        ({"kind": "nested", "modality": 0, "rate": 0.5, "seed": 1}, "unknown key 'seed'"),
    ],
)
def test_impossible_nested_scenarios_are_refused(spec: Any, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_scenarios([spec], 5)


def test_nested_scenarios_need_a_second_modality() -> None:
    with pytest.raises(UserError, match="one modality, which must stay"):
        parse_scenarios(["nested_0_0.5"], 1)
    assert parse_scenario("nested_1_1").name == parse_scenario("nested_01_1.0").name == "nested_1_1"
