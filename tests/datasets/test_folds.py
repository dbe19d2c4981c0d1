"""Folds of a cross-validation: every row tested once, groups whole, shares kept, equal to the libraries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from datasets.splits import draw_folds
from utils.errors import UserError

quick = settings(max_examples=15, deadline=None)


@quick
@given(st.integers(60, 200), st.integers(2, 5), st.booleans(), st.booleans(), st.integers(0, 2**31 - 1))
def test_every_row_is_tested_once_and_the_parts_of_a_fold_are_disjoint(
    n: int, folds: int, several: bool, grouped: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    target = (rng.random((n, 4)) < 0.4).astype(np.float32) if several else rng.integers(0, 3, n)
    if several:
        target[rng.random((n, 4)) < 0.2] = -1
    groups = rng.integers(0, n // 3, n).astype(str) if grouped else None
    actual = draw_folds(target, groups, folds, 0.2, seed)
    assert np.array_equal(np.sort(np.concatenate([test for _, _, test in actual])), np.arange(n))
    for parts in actual:
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
        assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
        if groups is not None:
            homes = [set(groups[part]) for part in parts]
            assert not homes[0] & homes[1] and not (homes[0] | homes[1]) & homes[2]
    again = draw_folds(target, groups, folds, 0.2, seed)
    assert all(np.array_equal(a, b) for one, two in zip(actual, again) for a, b in zip(one, two))


def test_folds_of_one_label_are_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    target, groups = rng.integers(0, 3, 90), rng.integers(0, 30, 90)
    plain = StratifiedKFold(5, shuffle=True, random_state=7).split(target, target)
    for (_, _, test), (_, expected) in zip(draw_folds(target, None, 5, 0.2, 7), plain):
        assert np.array_equal(test, expected)
    grouped = StratifiedGroupKFold(5, shuffle=True, random_state=7).split(target, target, groups)
    for (_, val, test), (_, expected) in zip(draw_folds(target, groups, 5, 0.2, 7), grouped):
        assert np.array_equal(test, expected) and 0.1 < len(val) / (90 - len(test)) < 0.3


def test_positives_are_spread_as_iterative_stratification_spreads_them() -> None:
    """Of every label, each fold has its share of the positives within one or two rows; chance alone is worse."""
    rng = np.random.default_rng(1)
    target = (rng.random((400, 8)) < rng.uniform(0.05, 0.4, 8)).astype(np.float32)
    target[rng.random(target.shape) < 0.3] = -1
    positive = target == 1
    actual = draw_folds(target, None, 5, 0.2, 42)
    library = MultilabelStratifiedKFold(5, shuffle=True, random_state=42).split(positive, positive.astype(int))
    wanted = positive.sum(0) / 5
    for (train, val, test), (_, expected) in zip(actual, library):
        assert np.array_equal(test, expected)
        assert np.abs(positive[test].sum(0) - wanted).max() <= 2
        assert np.abs(positive[val].sum(0) - 0.8 * wanted).max() <= 2
        assert abs(len(val) / (len(train) + len(val)) - 0.2) < 0.02
    chance = [np.abs(positive[part].sum(0) - wanted).max() for part in np.array_split(rng.permutation(400), 5)]
    assert max(chance) > 2


def test_too_few_rows_or_members_of_a_class_are_refused() -> None:
    with pytest.raises(UserError, match="6 groups cannot be divided into 5 folds"):
        draw_folds(np.zeros(30, dtype=np.int64), np.arange(30) % 6, 5, 0.2, 0)
    lonely = np.r_[np.zeros(40, dtype=np.int64), 1]
    with pytest.raises(UserError, match=r"no stratified validation split of .* rows .*leave the rarest class out"):
        draw_folds(lonely, None, 5, 0.2, 0)
