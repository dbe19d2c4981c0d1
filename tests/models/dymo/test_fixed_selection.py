"""The selection for export decides as the one that drops tokens and finished rows, and as the slow twin."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from models.dymo.fixed_selection import select_fixed
from models.dymo.method import DyMo
from models.dymo.prototypes import COSINE
from models.dymo.selection import Scorer, Selection, SelectionRule, select
from tests.models.dymo import test_partial_tables as tables
from tests.models.dymo.test_selection import (
    FEATURE_ROUNDING,
    LOGIT_ROUNDING,
    METRICS,
    assert_equals_twin,
    rows_to_judge,
    setting,
)

RULES: list[dict[str, Any]] = [{}, {"tail": "float32"}, {"threshold": 0.1}, {"reward": "log", "calibration": "none"}]

TWIN_RULES = [
    ("log_ratio", "robust", "posterior", 0.0),
    ("ratio", "float32", "log", 0.0),
    ("ratio", "robust", "posterior", 0.02),
]


# Two qualities of a reward. Each moves by at most half of what a similarity does: the rounding of features and that of
# inner products with them, over the temperature 0.1. The probabilities of the calibration move less.
REWARD_ROUNDING = 2 * (2 * FEATURE_ROUNDING / 0.1) / 2


def assert_alike(fixed: Selection, expected: Selection) -> None:
    """The same decisions and rewards; of the latter, rounds that no row of the batch has are NaN."""
    rounds = expected.rewards.shape[1]
    assert fixed.rewards[:, rounds:].isnan().all()
    torch.testing.assert_close(
        fixed.rewards[:, :rounds], expected.rewards, atol=REWARD_ROUNDING, rtol=1e-4, equal_nan=True
    )
    # A reward at the boundary may fall on either side, by rounding; without such rows nothing is left out.
    is_close = ((expected.rewards.abs() < 1e-4) | ((expected.rewards - 0.1).abs() < 1e-4)).any(-1).any(-1)
    assert is_close.float().mean() < 0.2
    sure = ~is_close
    assert torch.equal(fixed.final_missing[sure], expected.final_missing[sure])
    assert torch.equal(fixed.accepted[sure], expected.accepted[sure])
    torch.testing.assert_close(fixed.logits[sure], expected.logits[sure], atol=LOGIT_ROUNDING, rtol=0)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_it_decides_as_the_selection_of_the_test_stage(metric: str, rule: dict[str, Any]) -> None:
    case = setting(metric)
    scorer = case.scorer(**rule)
    generator = torch.Generator().manual_seed(1)
    for unrecoverable in (None, case.missing & (torch.rand(case.missing.shape, generator=generator) < 0.3)):
        expected = select(scorer, case.tokens, case.missing, None, unrecoverable)
        assert (expected.accepted >= 0).any() and (expected.final_missing & case.missing).any()
        with torch.no_grad():
            assert_alike(select_fixed(scorer, case.tokens, case.missing, None, unrecoverable), expected)


@pytest.mark.parametrize(("kind", "tail", "reward_kind", "threshold"), TWIN_RULES)
@pytest.mark.parametrize("metric", METRICS)
def test_it_decides_as_the_slow_twin(metric: str, kind: str, tail: str, reward_kind: str, threshold: float) -> None:
    """A third of the rows under each rule, in turn, and rows of every branch."""
    case = setting(metric)
    scorer = case.scorer(calibration=kind, tail=tail, reward=reward_kind, threshold=threshold)
    with torch.no_grad():
        actual = select_fixed(scorer, case.tokens, case.missing)
    assert 0.05 < float((actual.accepted >= 0).sum() / case.missing.sum()) < 0.95
    rows = rows_to_judge(actual, threshold, TWIN_RULES.index((kind, tail, reward_kind, threshold)))
    assert_equals_twin(case, case.judge(kind, tail, reward_kind), actual, threshold, rows)


@pytest.mark.parametrize("counted", ["observed", "missing"])
@pytest.mark.parametrize("metric", METRICS)
def test_partly_missing_tables_are_judged_alike(metric: str, counted: str) -> None:
    """Also in rows that have nothing but some cells of their table."""
    case = tables.setting(metric)
    rule = SelectionRule(partial_tables=counted)
    dymo = DyMo(case.model, tables.Given(case.recovered), case.parameters, rule)
    for batch in (case.batch, tables.cells_alone(case)):
        tokens, _ = dymo.complete(batch)
        partial = dymo.partial(batch)
        assert partial is not None and partial.visible.any()
        scorer = Scorer(case.model, case.parameters, rule)
        expected = select(scorer, tokens, batch.missing, partial)
        with torch.no_grad():
            assert_alike(select_fixed(scorer, tokens, batch.missing, partial), expected)


def test_a_row_is_selected_alone_as_among_others() -> None:
    case = setting(COSINE)
    with torch.no_grad():
        many = select_fixed(case.scorer(), case.tokens, case.missing)
        for row in range(0, len(case.missing), 7):
            rows = slice(row, row + 1)
            one = select_fixed(case.scorer(), case.tokens[rows], case.missing[rows])
            torch.testing.assert_close(one.rewards, many.rewards[rows], atol=REWARD_ROUNDING, rtol=1e-4, equal_nan=True)


def test_thresholds_that_accept_nothing_keep_the_observed_set() -> None:
    case = setting(COSINE)
    with torch.no_grad():
        actual = select_fixed(case.scorer(threshold=math.inf), case.tokens, case.missing)
    assert torch.equal(actual.final_missing, case.missing) and (actual.accepted == -1).all()
