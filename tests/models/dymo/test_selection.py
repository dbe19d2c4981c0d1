"""ICS, calibration, reward, greedy selection and its comparators against the slow twin."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from datasets.batch import Batch
from datasets.rows import take_rows
from gaussian_parameter_generation.estimate import estimate
from models.dymo.backbone import Sequences
from models.dymo.lattice import COMPARATORS, Lattice, compare, exhaustive
from models.dymo.method import DyMo
from models.dymo.prototypes import COSINE, EUCLIDEAN
from models.dymo.selection import THRESHOLDS, Scorer, Selection, SelectionRule, groups_by_missing, select
from models.dymo.similarity import Score, calibration, log_ics, reward, score
from models.dymo.validation import validate_selection
from models.imputers.base import Imputer, merge
from models.imputers.simple import Zero
from tests import slow_twin as twin
from tests.networks import class_batch, deciding_model, random_masks, twin_evaluator, under
from tests.tolerances import summation_bound
from utils.subsets import mask_code

METRICS = (COSINE, EUCLIDEAN)
ROWS = 160


# ---------------------------------------------------------------------------------------------- ICS and reward


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize(
    ("t", "expected", "relative"), [(0, 1.0, 1e-7), (1, 0.3173, 1e-4), (3, 2.6998e-3, 1e-4), (5, 5.96e-7, 1e-3)]
)
def test_similarity_in_the_original_form(t: float, expected: float, relative: float) -> None:
    actual = float(log_ics(tensor(3.0 * t), tensor(3.0), "float32").exp())
    assert actual == pytest.approx(expected, rel=relative)
    assert actual == pytest.approx(twin.ics_float32(3.0 * t, 3.0), rel=1e-6)


def test_original_form_vanishes_where_the_exact_one_does_not() -> None:
    assert log_ics(tensor(5.4, 6.0, 40.0), tensor(1.0), "float32").tolist() == [-math.inf] * 3
    exact = log_ics(tensor(5.0, 40.0), tensor(1.0))
    assert float(exact[0].exp()) == pytest.approx(5.733e-7, rel=1e-4)
    assert float(exact[1]) == pytest.approx(float(mpmath.log(twin.ics_exact(40, 1))), rel=1e-6)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.floats(0, 200, width=32), st.floats(2.0**-13, 1024, width=32))
def test_robust_tail_is_exact(t: float, sigma: float) -> None:
    distance = float(tensor(t * sigma))
    actual = float(log_ics(tensor(distance), tensor(sigma)))
    ratio = distance / sigma
    assert actual == pytest.approx(math.log(2) + stats.norm.logsf(ratio), rel=2e-6, abs=3e-7)
    assert actual == pytest.approx(float(mpmath.log(twin.ics_exact(distance, sigma))), rel=2e-6, abs=3e-7)


@pytest.mark.parametrize("tail", ["robust", "float32"])
def test_calibration_golden_values(tail: str) -> None:
    def g(p: float, p_new: float, kind: str) -> float:
        return float(calibration(tensor(p).log(), tensor(p_new).log(), kind, tail))

    assert g(0.99, 0.98, "log_ratio") == pytest.approx(0.4975, abs=1e-4)
    assert g(0.99, 0.98, "ratio") == pytest.approx(0.9899, abs=1e-4)
    assert g(0.5, 0.0, "log_ratio") == pytest.approx(0.03345 if tail == "float32" else 0.0, abs=1e-5)
    for kind, (p, p_new) in itertools.product(("log_ratio", "ratio", "none"), [(0.3, 0.3), (0.3, 0.9), (0.0, 0.0)]):
        assert g(p, p_new, kind) == 1
    assert g(0.9, 0.1, "none") == 1


PROBABILITIES = st.floats(2.0**-20, 1 - 2.0**-10, width=32)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(PROBABILITIES, PROBABILITIES, st.sampled_from(["log_ratio", "ratio", "none"]))
def test_calibration_equals_twin(p: float, p_new: float, kind: str) -> None:
    expected = twin.calibration_float32(p, p_new, kind)
    for tail in ("robust", "float32"):
        assert float(calibration(tensor(p).log(), tensor(p_new).log(), kind, tail)) == pytest.approx(expected, rel=3e-4)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.floats(-1e4, -17), st.floats(-1e4, -17), st.sampled_from(["log_ratio", "ratio"]))
def test_calibration_far_in_the_tail(log_p: float, log_p_new: float, kind: str) -> None:
    """Where float32 has no digits the guards of 1e-9 are left out: G is still a function of how far it fell."""
    log_p, log_p_new = float(tensor(log_p)), float(tensor(log_p_new))
    actual = float(calibration(tensor(log_p), tensor(log_p_new), kind))
    expected = twin.calibration_exact(mpmath.exp(log_p), mpmath.exp(log_p_new), kind)
    assert actual == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_reward_kinds() -> None:
    before = Score(tensor(0.5, 0.5, 0.8), tensor(0.99, 0.5, 0.5).log(), torch.zeros(3, 2))
    after = Score(tensor(0.9, 0.4, 0.8), tensor(0.98, 0.6, 0.5).log(), torch.zeros(3, 2))
    assert reward(before, after, "ratio").tolist() == pytest.approx([0.9 * 0.98 / 0.99 - 0.5, -0.1, 0], abs=1e-6)
    assert reward(before, after, "none").tolist() == pytest.approx([0.4, -0.1, 0], abs=1e-6)
    logs = [math.log(0.9 * 0.98 / 0.99 / 0.5), math.log(0.8), 0]
    assert reward(before, after, "ratio", "log").tolist() == pytest.approx(logs, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_score_equals_twin(metric: str) -> None:
    """Quality is of the nearest overall prototype, similarity of the classifier's class under the row's subset."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(20, 6, generator=generator), dim=-1)
    logits = torch.randn(20, 3, generator=generator)
    prototypes = 0.3 * torch.randn(7, 3, 6, generator=generator)
    sigma = 0.2 + torch.rand(7, 3, generator=generator)
    overall = 0.3 * torch.randn(3, 6, generator=generator)
    subset = torch.randint(7, (20,), generator=generator)
    actual = score(logits, features, subset, prototypes, sigma, overall, metric, 0.2)
    judge = twin.Judge(prototypes, overall, sigma, metric=metric, calibration="none", tail="exact", temperature=0.2)
    for row in range(20):
        mask = twin.subsets(3)[subset[row]]
        assert float(actual.quality[row]) == pytest.approx(judge.quality(features[row]), rel=1e-5)
        p = judge.ics(logits[row], features[row], mask)
        assert float(actual.log_ics[row]) == pytest.approx(float(mpmath.log(p)), rel=1e-5, abs=1e-6)
    assert torch.equal(actual.logits, logits)


# ---------------------------------------------------------------------------------------------- a network that decides


class Setting:
    """A network that tells classes apart, its Gaussian parameters, rows with good and bad recoveries, and the twin."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.model = deciding_model(metric)
        train = class_batch(400, 0.15, seed=2)
        self.parameters = estimate(self.model, [train], progress=False)
        self.batch = class_batch(ROWS, 0.3, seed=3)
        self.missing = random_masks(ROWS, 5, seed=4)
        with torch.no_grad():
            self.tokens = self.model.encode(self.batch.inputs)
        self.evaluators = [twin_evaluator(self.model, self.batch, row) for row in range(ROWS)]

    def scorer(self, **options: Any) -> Scorer:
        return Scorer(self.model, self.parameters, SelectionRule(**options))

    def judge(self, kind: str, tail: str = "robust", reward_kind: str = "posterior") -> twin.Judge:
        p = self.parameters
        exact = {"tail": tail, "reward": reward_kind, "metric": self.metric, "calibration": kind}
        return twin.Judge(p.prototypes, p.overall, p.sigma, **exact)

    def starts(self) -> list[tuple[int, twin.Mask]]:
        return [(row, tuple(mask)) for row, mask in enumerate(self.missing.tolist())]

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens[rows], self.missing[rows]


@cache
def setting(metric: str) -> Setting:
    return Setting(metric)


# Distance between the features of the network and of the twin, in float32: features of norm 1 at most, each entry a sum
# over the 32 entries of the CLS token. `test_twin_and_model_agree_on_what_they_evaluate` holds it.
FEATURE_ROUNDING = summation_bound(32, 1.0)
# The same for logits, up to 7 in absolute value. Another class or subset changes them by more than a hundredth.
LOGIT_ROUNDING = summation_bound(32, 10.0)
Interval = tuple[float, float]  # lowest and highest value that rounding can make of a number


def rounded(judge: twin.Judge, logits: Tensor, z: Tensor, mask: twin.Mask) -> tuple[Interval, tuple[Any, Any]]:
    """Intervals of the quality and of the similarity of a row, from the rounding of its features and of sums over them.

    Inner products and squared distances are sums of as many terms as features have entries. The probability then gets
    the error that `test_robust_tail_is_exact` allows log p, or, in the float32 tail, four units of 2^-23, the step in
    which 2 (1 - cdf) counts.
    """
    width, cosine = len(z), judge.metric == COSINE

    def slack(centre: Tensor) -> tuple[float, float]:
        """Of the distance of ICS, and of the similarity over which the softmax runs."""
        if cosine:
            error = FEATURE_ROUNDING * float(centre.norm()) + summation_bound(width, (z * centre).abs().sum())
            return error, error
        d = float((z - centre).norm())
        square = 2 * d * FEATURE_ROUNDING + summation_bound(width, d**2)
        return FEATURE_ROUNDING + summation_bound(width, d), square

    quality = judge.quality(z)
    worst = max(slack(centre)[1] for centre in judge.overall) / judge.temperature
    # All logits but the largest one move against it, by `worst` each.
    low, high = (quality / (quality + (1 - quality) * math.exp(sign * 2 * worst)) for sign in (1, -1))
    subset, predicted = judge.ids[mask], int(torch.argmax(logits))
    centre, sigma = judge.prototypes[subset, predicted], float(judge.sigma[subset, predicted])
    d, error = float(twin.distance(z, centre, judge.metric)), slack(centre)[0]
    if judge.tail == "float32":
        p = [twin.ics_float32(max(d + sign * error, 0.0), sigma) - sign * 2.0**-21 for sign in (1, -1)]
    else:
        p = [twin.ics_exact(max(d + sign * error, 0.0), sigma) for sign in (1, -1)]
        p = [x * mpmath.exp(-sign * (2e-6 * abs(mpmath.log(x)) + 3e-7)) for sign, x in zip((1, -1), p)]
    return (low, high), (min(max(p[0], 0.0), 1.0), min(max(p[1], 0.0), 1.0))


class Intervals:
    """Intervals of the rewards of one row. The reward grows with q' and p' and falls with q and p, so its ends come
    from the ends of those; a logarithmic reward gets its factor 1 / (q' G) in this way."""

    def __init__(self, case: Setting, judge: twin.Judge, row: int) -> None:
        self.start, self.evaluate, self.judge = case.missing[row].tolist(), case.evaluators[row], judge
        self.parts = cache(lambda mask: rounded(judge, *self.evaluate(mask), mask))

    def reward(self, before: twin.Mask, after: twin.Mask) -> Interval:
        (q_low, q_high), (p_low, p_high) = self.parts(before)
        (new_low, new_high), (p_new_low, p_new_high) = self.parts(after)
        low = self.judge.combine(q_high, new_low, p_high, p_new_low)
        high = self.judge.combine(q_low, new_high, p_low, p_new_high)
        if self.judge.kind == "log":
            # Below 2^-126 float32 counts in steps of 2^-149: G and q' G get up to half of one each,
            # and a kernel may be one step off.
            smallest, largest = math.exp(low) * q_high - 2.0**-147, math.exp(high) * q_low + 2.0**-147
            low = math.log(smallest) - math.log(q_high) if smallest > 0 else -math.inf
            high = math.log(largest) - math.log(q_low)
        # The last operations: a division, a product and a difference of numbers up to 1, or of their logarithms.
        last = summation_bound(4, 1 + (0.0 if math.isinf(low) else abs(low)))
        return low - last, high + last

    def history(self, accepted: list[int], history: list[dict[int, float]]) -> list[dict[int, Interval]]:
        """Of every candidate of every step."""
        intervals: list[dict[int, Interval]] = []
        for t, step in enumerate(history):
            mask = tuple(absent and i not in accepted[:t] for i, absent in enumerate(self.start))
            intervals.append({})
            for u, value in step.items():
                low, high = self.reward(mask, tuple(absent and i != u for i, absent in enumerate(mask)))
                assert low <= value <= high
                intervals[t][u] = (low, high)
        return intervals


def is_close_call(intervals: list[dict[int, Interval]], threshold: float) -> bool:
    """Whether rounding could turn a decision round."""
    for step in intervals:
        if any(low < bound < high for low, high in step.values() for bound in (0.0, threshold)):
            return True
        *others, best = sorted(step.values())
        if best[0] > threshold and any(high > best[0] for _, high in others):
            return True
    return False


def branches(found: Selection, threshold: float) -> dict[str, Tensor]:
    """Branch of the rule -> the rows (B,) that take it."""
    accepted = (found.accepted >= 0).sum(1)
    taken = {
        "none accepted": (accepted == 0) & (found.iterations > 0),
        "one accepted": accepted == 1,
        "one accepted after another": accepted > 1,
        "rejected": (found.rewards < 0).flatten(1).any(1),
        "stopped with candidates": found.iterations > accepted,
        "no candidate left": (found.iterations > 0) & (found.iterations == accepted),
    }
    if threshold:
        below = (found.rewards >= 0) & (found.rewards <= threshold)
        taken["below the threshold"] = below.flatten(1).any(1)
    return taken


def rows_to_judge(found: Selection, threshold: float, first: int) -> list[int]:
    """A third of the rows, and the first six of every branch of the rule."""
    taken = branches(found, threshold)
    some = {row for rows in taken.values() for row in rows.nonzero()[:6, 0].tolist()}
    return sorted({*range(first, ROWS, 3), *some})


def assert_equals_twin(
    case: Setting, judge: twin.Judge, found: Selection, threshold: float, rows: Iterable[int] = range(ROWS)
) -> None:
    """Compare the selection with the twin, on rows of which some take each branch of the rule."""
    taken, compared = branches(found, threshold), torch.zeros(ROWS, dtype=torch.bool)
    close_calls = 0
    for row in rows:
        mask = case.missing[row].tolist()
        final, accepted, history, logits = twin.greedy(case.evaluators[row], tuple(mask), judge, threshold)
        intervals = Intervals(case, judge, row).history(accepted, history)
        if is_close_call(intervals, threshold):
            close_calls += 1
            continue
        compared[row] = True
        assert tuple(found.final_missing[row].tolist()) == final, row
        assert [u for u in found.accepted[row].tolist() if u >= 0] == accepted, row
        assert int(found.iterations[row]) == len(history), row
        for t in range(found.rewards.shape[1]):
            values = found.rewards[row, t]
            expected = intervals[t] if t < len(history) else {}
            assert {u for u in range(5) if not math.isnan(values[u])} == set(expected), (row, t)
            for u, (low, high) in expected.items():
                assert low <= float(values[u]) <= high, (row, t, u)
        torch.testing.assert_close(found.logits[row], logits, rtol=0, atol=LOGIT_ROUNDING)
    assert close_calls <= (15 if judge.tail == "float32" else 3)
    counts = {name: int((rows & compared).sum()) for name, rows in taken.items()}
    assert min(counts.values()) >= 2, counts


RULES = [
    *itertools.product(["log_ratio", "ratio", "none"], ["robust", "float32"], ["posterior", "log"], [0.0]),
    # Few rows accept one modality after another under a larger threshold.
    ("log_ratio", "robust", "posterior", 0.02),
    ("ratio", "float32", "posterior", 0.02),
    ("none", "robust", "log", 0.05),
]


@pytest.mark.parametrize(("kind", "tail", "reward_kind", "threshold"), RULES)
@pytest.mark.parametrize("metric", METRICS)
def test_selection_equals_twin_on_every_row(
    metric: str, kind: str, tail: str, reward_kind: str, threshold: float
) -> None:
    """Rows that miss 0 to 4 of 5 modalities: decisions, order, rewards and logits.

    All rows under the rule of the paper; under each other rule a third of them, in turn, and rows of every branch.
    """
    case = setting(metric)
    before = case.missing.clone()
    scorer = case.scorer(calibration=kind, tail=tail, reward=reward_kind, threshold=threshold)
    actual = select(scorer, case.tokens, case.missing)
    assert torch.equal(case.missing, before), "the caller's mask was changed"
    share = float((actual.accepted >= 0).sum() / case.missing.sum())
    assert 0.05 < share < 0.95
    number = RULES.index((kind, tail, reward_kind, threshold))
    rows = rows_to_judge(actual, threshold, number % 3) if number else range(ROWS)
    assert_equals_twin(case, case.judge(kind, tail, reward_kind), actual, threshold, rows)


@pytest.mark.parametrize("metric", METRICS)
def test_robust_tail_decides_where_the_original_has_no_digits(metric: str) -> None:
    """With sigma four times too small most similarities are beyond float32."""
    case = copy(setting(metric))
    case.parameters = replace(case.parameters, sigma=case.parameters.sigma / 4)
    robust = select(case.scorer(), case.tokens, case.missing)
    judge = case.judge("log_ratio" if metric == COSINE else "ratio")
    far = [float(judge.ics(*case.evaluators[row](mask), mask)) < 2.0**-23 for row, mask in case.starts()]
    assert sum(far) > 20
    for row, mask in case.starts():
        final, accepted, history, _ = twin.greedy(case.evaluators[row], mask, judge)
        intervals = Intervals(case, judge, row).history(accepted, history)
        if is_close_call(intervals, 0.0):
            continue
        assert tuple(robust.final_missing[row].tolist()) == final, row
        for t, step in enumerate(intervals):
            for u, (low, high) in step.items():
                assert high - low < 1e-2  # p is the exponential of t^2 / 2 with t up to 30
                assert low <= float(robust.rewards[row, t, u]) <= high, (row, t, u)
    original = select(case.scorer(tail="float32"), case.tokens, case.missing)
    assert not torch.equal(original.final_missing, robust.final_missing)


@pytest.mark.parametrize("metric", METRICS)
def test_one_selection_gives_the_decisions_under_every_threshold(metric: str) -> None:
    """As a selection of its own per threshold decides, in rows without a reward so near that rounding decides."""
    case = setting(metric)
    path = select(case.scorer(), case.tokens, case.missing, is_path_kept=True)
    accepted_shares = []
    for threshold in (*THRESHOLDS, math.inf):
        alone = select(case.scorer(threshold=threshold), case.tokens, case.missing)
        limited = path.at(threshold)
        is_clear = ~((path.rewards - threshold).abs() < 1e-4).any(2).any(1)
        assert is_clear.sum() >= 0.95 * ROWS
        for field in ("final_missing", "accepted", "iterations"):
            assert torch.equal(getattr(limited, field)[is_clear], getattr(alone, field)[is_clear]), (threshold, field)
        rounds = alone.rewards.shape[1]
        assert torch.equal(limited.rewards[:, :rounds].isnan()[is_clear], alone.rewards.isnan()[is_clear])
        torch.testing.assert_close(limited.logits[is_clear], alone.logits[is_clear], rtol=0, atol=LOGIT_ROUNDING)
        accepted_shares.append(float((limited.accepted >= 0).sum() / case.missing.sum()))
    assert accepted_shares == sorted(accepted_shares, reverse=True) and accepted_shares[-1] == 0
    assert len(set(accepted_shares)) > 5
    with pytest.raises(ValueError, match="is_path_kept"):
        select(case.scorer(), case.tokens, case.missing).at(0.1)


@pytest.mark.parametrize("metric", METRICS)
def test_automatic_calibration_and_temperature(metric: str) -> None:
    case = setting(metric)
    kind = "log_ratio" if metric == COSINE else "ratio"
    actual = select(case.scorer(), case.tokens, case.missing)
    named = select(case.scorer(calibration=kind), case.tokens, case.missing)
    assert torch.equal(actual.rewards.nan_to_num(9), named.rewards.nan_to_num(9))
    judge = case.judge(kind)
    judge.temperature = 0.5
    warm = select(case.scorer(temperature=0.5), case.tokens, case.missing)
    assert not torch.equal(warm.final_missing, actual.final_missing)
    assert_equals_twin(case, judge, warm, 0.0)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_do_not_depend_on_their_batch(metric: str) -> None:
    """Up to rounding: kernels sum in another order for another number of rows."""
    case = setting(metric)
    judge = case.judge("log_ratio" if metric == COSINE else "ratio")
    clear, slack = torch.ones(ROWS, dtype=torch.bool), torch.zeros(ROWS)
    for row, mask in case.starts():
        _, accepted, history, _ = twin.greedy(case.evaluators[row], mask, judge)
        intervals = Intervals(case, judge, row).history(accepted, history)
        clear[row] = not is_close_call(intervals, 0.0)
        slack[row] = max((high - low for step in intervals for low, high in step.values()), default=0.0)
    assert clear.sum() >= ROWS - 3
    whole = select(case.scorer(), case.tokens, case.missing)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(ROWS, generator=generator)
    mixed = select(case.scorer(), *case.take(shuffled))
    pieces = [(torch.tensor([row]), select(case.scorer(), *case.take(torch.tensor([row])))) for row in range(0, 40)]
    for rows, part in [(shuffled, mixed), *pieces]:
        among = clear[rows]
        rows = rows[among]
        assert torch.equal(part.final_missing[among], whole.final_missing[rows])
        assert torch.equal(part.accepted[among], whole.accepted[rows])
        torch.testing.assert_close(part.logits[among], whole.logits[rows], rtol=0, atol=LOGIT_ROUNDING)
        rounds = part.rewards.shape[1]
        rewards, expected = part.rewards[among], whole.rewards[rows, :rounds]
        assert whole.rewards[rows, rounds:].isnan().all()
        assert torch.equal(rewards.isnan(), expected.isnan())
        assert ((rewards - expected).abs().nan_to_num() <= slack[rows, None, None]).all()


def test_nothing_missing_is_the_plain_forward() -> None:
    case = setting(COSINE)
    missing = torch.zeros(7, 5, dtype=torch.bool)
    actual = select(case.scorer(), case.tokens[:7], missing)
    assert actual.rewards.shape == (7, 0, 5)
    assert (actual.accepted == -1).all()
    assert actual.iterations.tolist() == [0] * 7
    with torch.no_grad():
        expected = case.model.fuse(case.tokens[:7], take_rows(case.batch, torch.arange(7)).replace(missing=missing))
        torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=LOGIT_ROUNDING)


def test_infinite_threshold_discards() -> None:
    case = setting(COSINE)
    actual = select(case.scorer(threshold=math.inf), case.tokens, case.missing)
    assert torch.equal(actual.final_missing, case.missing)
    with torch.no_grad():
        expected = case.model.fuse(case.tokens, case.batch.replace(missing=case.missing)).logits
    torch.testing.assert_close(actual.logits, expected, rtol=0, atol=LOGIT_ROUNDING)


def test_empty_batch() -> None:
    case = setting(COSINE)
    actual = select(case.scorer(), case.tokens[:0], case.missing[:0])
    assert actual.logits.shape == (0, 10)


def test_groups_cover_every_row_once() -> None:
    missing = random_masks(23, 5, seed=0)
    groups = groups_by_missing(missing)
    assert [k for k, _ in groups] == [0, 1, 2, 3, 4]
    assert sorted(torch.cat([rows for _, rows in groups]).tolist()) == list(range(23))
    for k, rows in groups:
        assert (missing[rows].sum(1) == k).all()


# ---------------------------------------------------------------------------------------------- scripted rewards


class Script(Scorer):
    """Qualities by table: the reward of going from one mask to another is their difference."""

    def __init__(self, table: dict[twin.Mask, float], threshold: float = 0.0) -> None:
        self.rule = SelectionRule(calibration="none", threshold=threshold)
        self.calibration = "none"
        m = len(next(iter(table)))
        self.values = torch.full((2**m,), math.nan)
        for mask, value in table.items():
            self.values[mask_code(torch.tensor(mask))] = value
        self.model = SimpleNamespace(prepare=lambda tokens, _: Sequences(tokens, tokens), num_classes=1)  # type: ignore[assignment]

    def __call__(self, sequences: Sequences, rows: Tensor, missing: Tensor, n_visible: int) -> Score:
        assert ((~missing).sum(1) == n_visible).all()
        codes = mask_code(missing)
        return Score(self.values[codes], torch.zeros(len(rows)), codes[:, None].float())

    def choose(self, *masks: twin.Mask) -> Selection:
        missing = torch.tensor(masks)
        return select(self, torch.zeros(len(masks), 1, 1), missing)


def table(**values: float) -> dict[twin.Mask, float]:
    """Qualities of three modalities; ``o01`` stands for modalities 0 and 1 present."""
    return {tuple(str(i) not in key for i in range(3)): value for key, value in values.items()}


def decisions(selection: Selection) -> tuple[list[bool], list[int]]:
    return selection.final_missing[0].tolist(), [u for u in selection.accepted[0].tolist() if u >= 0]


START = (False, True, True)


def test_rejection_is_permanent() -> None:
    """Modality 2 harms at first and would help after modality 1, but stays out."""
    actual = Script(table(o0=0.5, o01=0.6, o02=0.4, o012=0.9)).choose(START)
    assert decisions(actual) == ([False, False, True], [1])
    assert actual.iterations.tolist() == [1]


def test_both_are_accepted_one_after_the_other() -> None:
    actual = Script(table(o0=0.5, o01=0.6, o02=0.7, o012=0.9)).choose(START)
    assert decisions(actual) == ([False, False, False], [2, 1])
    rewards = actual.rewards[0].nan_to_num(9)
    torch.testing.assert_close(rewards, torch.tensor([[9, 0.1, 0.2], [9, 0.2, 9]]))


def test_all_bad_is_one_round_without_action() -> None:
    actual = Script(table(o0=0.5, o01=0.4, o02=0.3, o012=0.9)).choose(START)
    assert decisions(actual) == (list(START), [])
    assert actual.iterations.tolist() == [1]


def test_tie_takes_the_first_and_keeps_the_other_as_candidate() -> None:
    actual = Script(table(o0=0.25, o01=0.5, o02=0.5, o012=0.75)).choose(START)
    assert decisions(actual) == ([False, False, False], [1, 2])


def test_reward_of_zero_is_not_accepted_but_not_rejected_either() -> None:
    """Modality 1 brings nothing; alone it ends the row, beside an accepted one it gets a second chance."""
    assert decisions(Script(table(o0=0.5, o01=0.5, o02=0.5, o012=0.9)).choose(START)) == (list(START), [])
    actual = Script(table(o0=0.5, o01=0.5, o02=0.6, o012=0.9)).choose(START)
    assert decisions(actual) == ([False, False, False], [2, 1])


def test_reward_of_nan_rejects() -> None:
    nan = math.nan
    assert decisions(Script(table(o0=0.5, o01=nan, o02=0.6, o012=0.9)).choose(START)) == ([False, True, False], [2])
    assert decisions(Script(table(o0=0.5, o01=nan, o02=nan, o012=0.9)).choose(START)) == (list(START), [])
    assert decisions(Script(table(o0=nan, o01=0.6, o02=0.6, o012=0.9)).choose(START)) == (list(START), [])


def test_threshold_bars_acceptance_but_rejects_nothing() -> None:
    """0.1 for modality 1 is too little at first; after modality 2 it brings 0.3."""
    actual = Script(table(o0=0.25, o01=0.35, o02=0.5, o012=0.8), threshold=0.2).choose(START)
    assert decisions(actual) == ([False, False, False], [2, 1])
    actual = Script(table(o0=0.25, o01=0.35, o02=0.4, o012=0.9), threshold=0.2).choose(START)
    assert decisions(actual) == (list(START), [])


QUALITIES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan])


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.lists(QUALITIES, min_size=15, max_size=15),
    st.lists(st.sampled_from(twin.subsets(4)), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.25, 0.3]),
)
def test_scripted_selection_equals_twin(values: list[float], masks: list[twin.Mask], threshold: float) -> None:
    """Ties, zeros and NaN anywhere."""
    qualities = dict(zip(twin.subsets(4), values))
    actual = Script(qualities, threshold).choose(*masks)
    judge = SimpleNamespace(reward=lambda evaluate, before, after: qualities[after] - qualities[before])
    for row, mask in enumerate(masks):
        code = twin.greedy(lambda final: (tuple(final), None), mask, judge, threshold)  # type: ignore[arg-type, return-value]
        final, accepted, history, _ = code
        assert tuple(actual.final_missing[row].tolist()) == final
        assert [u for u in actual.accepted[row].tolist() if u >= 0] == accepted
        assert int(actual.iterations[row]) == len(history)
        assert int(actual.logits[row, 0]) == int(mask_code(torch.tensor(final)))


# ---------------------------------------------------------------------------------------------- lattice, comparators


@pytest.mark.parametrize("metric", METRICS)
def test_lattice_equals_one_by_one_evaluation(metric: str) -> None:
    case = setting(metric)
    kind = "log_ratio" if metric == COSINE else "ratio"
    judge = case.judge(kind)
    lattices = exhaustive(case.scorer(), case.tokens, case.missing)
    assert sorted(torch.cat([lattice.rows for lattice in lattices]).tolist()) == list(range(ROWS))
    for lattice in lattices:
        for r, row in enumerate(lattice.rows.tolist()):
            start = tuple(case.missing[row].tolist())
            masks = [tuple(m) for m in lattice.missing[r].tolist()]
            assert masks[0] == start
            assert masks[-1] == (False,) * 5
            assert set(masks) == set(twin.supersets(start))
            assert len(masks) == 2 ** sum(start)
            if row >= ROWS // 2:
                continue
            evaluate = case.evaluators[row]
            expected = torch.stack([evaluate(mask)[0] for mask in masks])
            torch.testing.assert_close(lattice.logits[r], expected, rtol=0, atol=LOGIT_ROUNDING)
            intervals = Intervals(case, judge, row)
            assert lattice.reward[r, 0] == 0
            for mask, value in zip(masks[1:], lattice.reward[r, 1:].tolist()):
                low, high = intervals.reward(start, mask)
                assert low <= judge.reward(evaluate, start, mask) <= high
                assert low <= value <= high, (row, mask)


def compared(case: Setting, *names: str) -> tuple[Selection, dict[str, Selection]]:
    scorer = case.scorer()
    selection = select(scorer, case.tokens, case.missing)
    lattices = exhaustive(scorer, case.tokens, case.missing)
    return selection, compare(lattices, selection, case.batch.target, names or COMPARATORS, case.batch.index)


@pytest.mark.parametrize("metric", METRICS)
def test_comparators(metric: str) -> None:
    case = setting(metric)
    selection, results = compared(case)
    assert set(results) == {"discard", "impute_all", "random", "best_subset", "oracle_subset"}
    nothing = torch.zeros_like(case.missing)
    assert torch.equal(results["discard"].final_missing, case.missing)
    assert torch.equal(results["impute_all"].final_missing, nothing)
    count = (selection.accepted >= 0).sum(1)
    assert torch.equal((case.missing & ~results["random"].final_missing).sum(1), count)
    with torch.no_grad():
        for name, result in results.items():
            assert not (result.final_missing & ~case.missing).any(), f"{name} hides what is observed"
            expected = case.model.fuse(case.tokens, case.batch.replace(missing=result.final_missing)).logits
            torch.testing.assert_close(result.logits, expected, rtol=0, atol=LOGIT_ROUNDING)
            assert result is not selection
    assert torch.equal(select(case.scorer(), case.tokens, case.missing).final_missing, selection.final_missing)


@pytest.mark.parametrize("metric", METRICS)
def test_best_subset_equals_twin(metric: str) -> None:
    case = setting(metric)
    selection, results = compared(case, "best_subset")
    judge = case.judge("log_ratio" if metric == COSINE else "ratio")
    for row, mask in enumerate(case.missing.tolist()):
        expected, _ = twin.best_subset(case.evaluators[row], tuple(mask), judge)
        assert tuple(results["best_subset"].final_missing[row].tolist()) == expected
    assert not torch.equal(results["best_subset"].final_missing, selection.final_missing)


def test_oracle_is_right_whenever_any_subset_is() -> None:
    """The upper bound of every choice among the subsets. In row 0 the observed modality alone is right with 0.4 against
    0.3 and 0.3; with the recovery the true class gets 0.45 and another one 0.55."""
    logits = torch.randn(400, 2, 3, generator=seeded(0))
    logits[0] = torch.stack([tensor(0.4, 0.3, 0.3), tensor(0.45, 0.55, 1e-6)]).log()
    target = torch.zeros(400, dtype=torch.long)
    missing = torch.tensor([[[False, True], [False, False]]]).expand(400, -1, -1)
    zero = torch.zeros(800)
    lattice = Lattice(torch.arange(400), missing, Score(zero, zero, logits.flatten(0, 1)), zero.view(400, 2))
    nothing = Selection(logits[:, 0], missing[:, 0], torch.full((400, 2), -1), torch.zeros(400, 1, 2))
    actual = compare([lattice], nothing, target, ("oracle_subset",), torch.arange(400))["oracle_subset"]
    reachable = (logits.argmax(-1) == 0).any(1)
    assert 0.2 < reachable.float().mean() < 0.8
    assert torch.equal(actual.logits.argmax(1) == 0, reachable)


def test_only_the_oracle_reads_labels() -> None:
    case = setting(COSINE)
    _, results = compared(case)
    other = replace(case.batch, target=(case.batch.target + 1) % 10)
    selection = select(case.scorer(), case.tokens, case.missing)
    lattices = exhaustive(case.scorer(), case.tokens, case.missing)
    changed = compare(lattices, selection, other.target, COMPARATORS, case.batch.index)
    for name in COMPARATORS:
        same = torch.equal(changed[name].final_missing, results[name].final_missing)
        assert same == (name != "oracle_subset")


def test_random_subsets_are_uniform_among_those_of_the_same_size() -> None:
    qualities = dict.fromkeys(twin.subsets(5), 0.5)
    script = Script(qualities)
    missing = torch.tensor([[False, True, True, True, True]] * 3000)
    two = torch.tensor([[1, 3, -1, -1, -1]]).expand(3000, -1)
    selection = replace(select(script, torch.zeros(3000, 1, 1), missing), accepted=two)
    lattices = exhaustive(script, torch.zeros(3000, 1, 1), missing)
    target = torch.zeros(3000, dtype=torch.long)
    result = compare(lattices, selection, target, ("random",), torch.arange(3000))["random"]
    codes, counts = mask_code(result.final_missing).unique(return_counts=True)
    assert len(codes) == 6
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_random_subsets_differ_between_seeds_and_scenarios() -> None:
    """Independent draws: two agree in one of six cases, and the draw of a row does not depend on its batch."""
    script, n = Script(dict.fromkeys(twin.subsets(5), 0.5)), 1500
    missing = torch.tensor([[False, True, True, True, True]] * n)
    two = torch.tensor([[1, 3, -1, -1, -1]]).expand(n, -1)
    selection = replace(select(script, torch.zeros(n, 1, 1), missing), accepted=two)
    lattices = exhaustive(script, torch.zeros(n, 1, 1), missing)
    target = torch.zeros(n, dtype=torch.long)

    def drawn(index: Tensor, **key: Any) -> Tensor:
        return mask_code(compare(lattices, selection, target, ("random",), index, **key)["random"].final_missing)

    rows = torch.arange(n)
    first = drawn(rows, seed=0, scenario="random_0.8")
    assert torch.equal(first, drawn(rows, seed=0, scenario="random_0.8"))
    order = torch.randperm(n, generator=seeded(0))
    assert torch.equal(first[order], drawn(order, seed=0, scenario="random_0.8"))
    for key in ({"seed": 1, "scenario": "random_0.8"}, {"seed": 0, "scenario": "random_0.6"}):
        agreement = (first == drawn(rows, **key)).float().mean()
        assert abs(float(agreement) - 1 / 6) < 4 * math.sqrt(5 / 36 / n)


def test_the_seed_and_the_scenario_reach_the_random_comparator() -> None:
    case = setting(COSINE)
    masks = {"random_0.8": case.missing, "random_0.6": case.missing}
    remaining = {}
    for seed in (0, 1):
        dymo = DyMo(case.model, Zero(), case.parameters, comparators=("random",), seed=seed)
        for scenario, prediction in dymo.predict_scenarios(case.batch, under(case.batch, masks))["random"].items():
            remaining[seed, scenario] = prediction.extras["final_missing"]
    first = remaining.pop((0, "random_0.8"))
    assert all(not torch.equal(first, other) for other in remaining.values())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------- DyMo as a whole


class Given(Imputer):
    """Recoveries made beforehand, by row number."""

    def __init__(self, content: dict[str, Tensor]) -> None:
        self.content = content

    def impute(self, inputs: Any, missing: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        assert index is not None
        return {n: merge(x, missing[:, i], self.content[n][index]) for i, (n, x) in enumerate(inputs.items())}


def hidden(batch: Batch, missing: Tensor, fill: float) -> Batch:
    """The batch with ``fill`` in place of what is missing."""
    inputs = {n: merge(x, missing[:, i], torch.full_like(x, fill)) for i, (n, x) in enumerate(batch.inputs.items())}
    return batch.replace(inputs=inputs, missing=missing)


def test_dymo_selects_among_the_recoveries() -> None:
    case = setting(COSINE)
    dymo = DyMo(case.model, Given(case.batch.inputs), case.parameters)
    before = case.missing.clone()
    prediction = dymo(hidden(case.batch, case.missing, math.nan))
    expected = select(case.scorer(), case.tokens, case.missing)
    assert torch.equal(case.missing, before)
    assert torch.equal(prediction.extras["final_missing"], expected.final_missing)
    assert torch.equal(prediction.extras["accepted"], expected.accepted)
    torch.testing.assert_close(prediction.logits, expected.logits, rtol=0, atol=LOGIT_ROUNDING)
    assert torch.equal(prediction.extras["iterations"], expected.iterations)


@pytest.mark.parametrize("fill", [math.nan, math.inf, 1e30])
def test_dymo_never_reads_what_is_missing(fill: float) -> None:
    case = setting(EUCLIDEAN)
    dymo = DyMo(case.model, Zero(), case.parameters, comparators=COMPARATORS)
    results = []
    for value in (0.0, fill):
        batch = hidden(case.batch, case.missing, value)
        prediction = dymo(batch)
        many = dymo.predict_scenarios(batch, {"own": batch})
        results.append([prediction.logits, prediction.extras["rewards"], *(many[n]["own"].logits for n in many)])
    for one, other in zip(*results):
        assert torch.equal(one.nan_to_num(9), other.nan_to_num(9))
        assert not torch.isnan(results[0][0]).any()


def test_scenarios_equal_one_call_each() -> None:
    case = setting(COSINE)
    dymo = DyMo(case.model, Given(case.batch.inputs), case.parameters, comparators=(*COMPARATORS, "threshold"))
    masks = {"a": case.missing, "b": case.missing.roll(1, 0), "none": torch.zeros_like(case.missing)}
    results = dymo.predict_scenarios(case.batch, under(case.batch, masks))
    assert set(results) == {"", *COMPARATORS}, "without a validated threshold there is no such entry"
    dymo.validated_threshold = 0.3
    results = dymo.predict_scenarios(case.batch, under(case.batch, masks))
    limited = DyMo(case.model, Given(case.batch.inputs), case.parameters, SelectionRule(threshold=0.3))
    for name, missing in masks.items():
        batch = case.batch.replace(missing=missing)
        for label, method in (("", dymo), ("threshold", limited)):
            expected = method(batch)
            assert torch.equal(results[label][name].extras["final_missing"], expected.extras["final_missing"])
            torch.testing.assert_close(results[label][name].logits, expected.logits, rtol=0, atol=LOGIT_ROUNDING)
    assert not torch.equal(results[""]["a"].extras["final_missing"], results["threshold"]["a"].extras["final_missing"])


def accuracy_of(case: Setting, threshold: float, missing: Tensor) -> float:
    actual = select(case.scorer(threshold=threshold), case.tokens, missing)
    return float((actual.logits.argmax(1) == case.batch.target).double().mean())


def test_validated_threshold_is_nowhere_worse_than_discarding() -> None:
    case = setting(COSINE)
    dymo = DyMo(case.model, Given(case.batch.inputs), case.parameters)
    masks = {"a": case.missing, "b": case.missing.roll(1, 0)}
    thresholds = (0.0, 0.2, 0.6)
    accuracy, baseline, best = validate_selection(dymo, [(case.batch, under(case.batch, masks))], thresholds)
    for name, missing in masks.items():
        assert baseline[name] == pytest.approx(accuracy_of(case, math.inf, missing))
        for threshold in thresholds:
            assert accuracy[name][threshold] == pytest.approx(accuracy_of(case, threshold, missing))
    allowed = [t for t in thresholds if all(accuracy[s][t] >= baseline[s] for s in masks)]
    better = [t for t in allowed if sum(accuracy[s][t] for s in masks) > sum(baseline.values())]
    assert best == max(better, key=lambda t: (sum(accuracy[s][t] for s in masks), t), default=math.inf)


def test_useless_recoveries_make_the_validated_threshold_infinite() -> None:
    """Recoveries of the next class: accepting any of them can only harm."""
    case = setting(COSINE)
    shifted = class_batch(ROWS, 0.0, seed=8)
    wrong = {name: x.roll(1, 0) for name, x in shifted.inputs.items()}
    dymo = DyMo(case.model, Given(wrong), case.parameters, SelectionRule(calibration="none"))
    missing = random_masks(ROWS, 5, seed=9)
    accuracy, baseline, best = validate_selection(dymo, [(shifted, under(shifted, {"s": missing}))], (0.0, 0.02))
    assert max(accuracy["s"].values()) < baseline["s"]
    assert best == math.inf


def test_twin_and_model_agree_on_what_they_evaluate() -> None:
    """Guards the other tests: the remembered twin equals the network on arbitrary masks."""
    case = setting(EUCLIDEAN)
    chosen = torch.tensor(twin.subsets(5))[torch.arange(ROWS) % 31]
    with torch.no_grad():
        fused = case.model.fuse(case.tokens, case.batch.replace(missing=chosen))
    logits, features = fused.logits, fused.features
    for row in range(0, ROWS, 5):
        expected, z = case.evaluators[row](tuple(chosen[row].tolist()))
        torch.testing.assert_close(logits[row], expected, rtol=0, atol=LOGIT_ROUNDING)
        assert float((features[row] - z).norm()) < FEATURE_ROUNDING
