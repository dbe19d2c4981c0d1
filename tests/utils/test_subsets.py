"""Order, codes and drawing of modality subsets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests import slow_twin as twin
from utils.subsets import draw_subsets, enumerate_subsets, mask_code, subset_lookup

PRESENT = {
    2: "0 1 01",
    3: "0 1 2 01 02 12 012",
    5: "0 1 2 3 4 01 02 03 04 12 13 14 23 24 34 012 013 014 023 024 034 123 124 134 234 0123 0124 0134 0234 1234 01234",
}


@pytest.mark.parametrize("m", PRESENT)
def test_order_of_the_original_files(m: int) -> None:
    expected = [[str(i) not in present for i in range(m)] for present in PRESENT[m].split()]
    assert enumerate_subsets(m).tolist() == expected
    assert enumerate_subsets(m).dtype == torch.bool


@pytest.mark.parametrize("m", range(1, 8))
def test_subsets_equal_twin(m: int) -> None:
    assert [tuple(row) for row in enumerate_subsets(m).tolist()] == twin.subsets(m)


@pytest.mark.parametrize("m", [0, -1, 17])
def test_impossible_number_of_modalities_is_refused(m: int) -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        enumerate_subsets(m)


@pytest.mark.parametrize("m", range(1, 8))
def test_lookup_inverts_the_table(m: int) -> None:
    table = subset_lookup(m)
    assert table[mask_code(enumerate_subsets(m))].tolist() == list(range(2**m - 1))
    assert int(table[0]) == -1
    assert int(mask_code(torch.ones(m, dtype=torch.bool))) == 0


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_mask_code_reads_present_modalities_as_bits(masks: list[list[bool]]) -> None:
    expected = [sum(2**i for i, missing in enumerate(mask) if not missing) for mask in masks]
    assert mask_code(torch.tensor(masks)).tolist() == expected
    assert mask_code(torch.tensor(masks)[:, None]).shape == (len(masks), 1)


@pytest.mark.parametrize(("m", "k"), [(5, 5), (3, 2), (2, 2), (5, 1)])
def test_drawn_subsets_are_distinct_and_uniform(m: int, k: int) -> None:
    """The counts of a draw without replacement are correlated by -1/(S-1): the statistic allows for it."""
    generator = torch.Generator().manual_seed(0)
    s, draws = 2**m - 1, 3000
    counts = torch.zeros(s, dtype=torch.float64)
    first = torch.zeros(s, dtype=torch.float64)
    lookup = subset_lookup(m)
    for _ in range(draws):
        ids = lookup[mask_code(draw_subsets(m, k, generator))]
        assert len(ids.unique()) == k
        counts[ids] += 1
        first[ids[0]] += 1
    share = k / s
    statistic = float((counts - draws * share).square().sum() / (draws * share * (1 - share)) * (s - 1) / s)
    assert stats.chi2.sf(statistic, s - 1) > 0.01
    assert stats.chisquare(first.numpy()).pvalue > 0.01


def test_draw_of_more_than_there_are_takes_each_once() -> None:
    drawn = draw_subsets(2, 10, torch.Generator().manual_seed(0))
    assert sorted(map(tuple, drawn.tolist())) == sorted(twin.subsets(2))
