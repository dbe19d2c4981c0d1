"""Scenarios whose chances depend on content, class, modality or each other: rates, dependence, refusals.

Bounds are central intervals of the binomial distribution at :data:`LEVEL`; fits are by scikit-learn.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog
from sklearn.linear_model import LogisticRegression

from datasets.missingness import Rows, mask_hash, parse_scenario, parse_scenarios, save_mask
from datasets.missingness.correlated import correlations
from tests.datasets.missingness.all_kinds import AllKinds, all_kinds, is_binomial
from utils.errors import UserError

N = 4000
NAMES = [
    *(f"mar_{j}_0.4" for j in range(6)),
    *("mar_1-age_0.4", "mar_1-site_slope-3_0.2"),
    *(f"mnar_{j}_0.4" for j in range(6)),
    *("mnar_1-dose_0.3", "mnar_content_0.4", "mnar_class_0.4", "mnar_class_slope-4_0.7"),
    *("rates_0.1_0.5_0.9_0.3_0_1", "rates_0.8_0.8_0.8_0.8_0.8_0.9"),
    *("correlated_0.5_0.3", "correlated_13_1_0.4", "correlated_1345_-0.2_0.4"),
    "patterns_none-0.5_12-0.3_0345-0.2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AllKinds:
    return all_kinds(tmp_path_factory.mktemp("kinds"), N)


@pytest.mark.parametrize("name", NAMES)
def test_rates_hit_and_every_row_keeps_something_on_every_split(data: AllKinds, name: str) -> None:
    scenario = parse_scenario(name)
    assert scenario.name == name
    rate = scenario.expected_rate(6)
    assert rate is not None
    hashes = set()
    for split in ("train", "val", "test"):
        mask, cells = data.masks(split, scenario)
        assert mask.shape == (N, 6) and not cells and not mask.all(1).any()
        assert np.array_equal(mask, data.masks(split, scenario)[0])
        hashes.add(mask_hash(mask))
        realised = scenario.realised_rate(mask)
        # Modalities of a row depend on each other: Hoeffding's bound over rows, whose mean lies in [0, 1].
        assert abs(realised - rate) < np.sqrt(np.log(2e6) / (2 * N)), split
        assert "rate of" in (scenario.remark(6, rate + 0.02) or "rate of")
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("name", "digest"),
    [  # recorded when these scenarios were added
        ("mar_0_0.4", "6b3ccb01028df4c1"),
        ("mar_1-age_slope-3_0.4", "62d47192ae243c28"),
        ("mnar_5_0.4", "095ea92c0155a290"),
        ("mnar_content_0.4", "8047697e07f28fd9"),
        ("mnar_class_0.4", "b3a9a0645259cfc2"),
        ("rates_0.1_0.5_0.9_0.3_0_1", "47672f13cc68241f"),
        ("correlated_0.5_0.3", "166804a6c1eb4d53"),
        ("correlated_12_-0.3_0.4", "164db2e1d47f3b02"),
        ("patterns_none-0.5_12-0.3_0-0.2", "a8c12f87dac3c4ea"),
    ],
)
def test_masks_have_their_golden_hashes(tmp_path: Path, name: str, digest: str) -> None:
    data = all_kinds(tmp_path, 200)
    scenario = parse_scenario(name)
    mask = data.mask("test", scenario)
    save_mask(tmp_path / "masks" / scenario.slug, mask, scenario, 0, data.modality_names)
    about = json.loads((tmp_path / "masks" / f"{scenario.slug}.json").read_text())
    assert mask_hash(mask) == about["sha256_16"] == digest
    assert about["realised_rates"] == dict(zip(data.modality_names, mask.mean(0).tolist()))


@pytest.mark.parametrize("name", NAMES)
def test_training_batches_hide_what_the_scenario_hides(data: AllKinds, name: str) -> None:
    """Content of every kind, also NaN, reaches no batch that a method sees where it is missing."""
    scenario = parse_scenario(name)
    mask, _ = data.masks("train", scenario)
    batch = next(iter(data.loader("train", scenario, train=True, batch_size=64)))
    assert np.array_equal(batch.missing.numpy(), mask[batch.index.numpy()])
    for column, modality in enumerate(data.modalities):
        if batch.inputs[modality.name].is_floating_point():
            batch.inputs[modality.name][batch.missing[:, column]] = float("nan")
    for column, (modality, shown) in enumerate(zip(data.modalities, batch.observed().values())):
        assert not shown[batch.missing[:, column]].any() and shown.isfinite().all(), modality.name


def slope_of(mask: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Slope of a logistic fit, and its standard error from the Fisher information."""
    x = scores[:, None]
    fit = LogisticRegression(C=np.inf).fit(x, mask)
    p = fit.predict_proba(x)[:, 1]
    design = np.stack([np.ones(len(scores)), scores], 1)
    information = design.T @ (design * (p * (1 - p))[:, None])
    return float(fit.coef_[0, 0]), float(np.sqrt(np.linalg.inv(information)[1, 1]))


@pytest.mark.parametrize("driver", ["0", "1", "1-age", "2", "3", "4", "5"])
@pytest.mark.parametrize("slope", [2.0, -0.5])
def test_mar_has_the_stated_slope_on_the_observed_driver_alone(data: AllKinds, driver: str, slope: float) -> None:
    scenario = parse_scenario(f"mar_{driver}_slope{slope:g}_0.4" if slope != 2 else f"mar_{driver}_0.4")
    modality, _, column = driver.partition("-")
    mask, _ = data.masks("train", scenario)
    assert not mask[:, int(modality)].any()
    content = data._content("train", data.source_gaps("train"))
    scores = content.scores(int(modality), column or None)
    others = [j for j in range(6) if j != int(modality)]
    for j in others:
        assert is_binomial(int(mask[:, j].sum()), N, 0.4)
        estimate, error = slope_of(mask[:, j], scores)
        assert abs(estimate - slope) < 5 * error
        correlation, p = stats.pointbiserialr(mask[:, j], scores)
        assert np.sign(correlation) == np.sign(slope) and p < 1e-12
    # Given the driver, modalities are independent of each other and of other content.
    other = content.scores(others[0])
    estimate, error = slope_of(mask[:, others[1]], other)
    assert abs(estimate) < 5 * error


@pytest.mark.parametrize("on", ["0", "1", "1-dose", "3", "5"])
def test_mnar_has_the_stated_slope_on_the_content_that_is_missing(data: AllKinds, on: str) -> None:
    modality, _, column = on.partition("-")
    mask, _ = data.masks("test", parse_scenario(f"mnar_{on}_slope3_0.3"))
    assert not np.delete(mask, int(modality), 1).any() and is_binomial(int(mask.sum()), N, 0.3)
    content = data._content("test", data.source_gaps("test"))
    estimate, error = slope_of(mask[:, int(modality)], content.scores(int(modality), column or None))
    assert abs(estimate - 3) < 5 * error


def test_mnar_on_all_content_and_on_the_class_is_the_redrawn_logistic_model(data: AllKinds) -> None:
    content = data._content("test", data.source_gaps("test"))
    mask, _ = data.masks("test", parse_scenario("mnar_content_0.3"))
    for j in range(6):
        correlation, p = stats.pointbiserialr(mask[:, j], content.scores(j))
        assert correlation > 0.3 and p < 1e-12
        for k in range(6):
            assert k == j or abs(stats.pointbiserialr(mask[:, j], content.scores(k))[0]) < 0.1
    mask, _ = data.masks("test", parse_scenario("mnar_class_slope-4_0.7"))
    target = data.split("test").read("target").numpy()
    levels, counts = np.unique(content.class_scores, return_counts=True)

    def rates(intercept: float) -> np.ndarray:
        """Chance of a modality to be missing per class: binomial on condition that not all six are missing."""
        p = 1 / (1 + np.exp(-(intercept - 4 * levels)))
        return (p - p**6) / (1 - p**6)

    low, high = -30.0, 12.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.average(rates(middle), weights=counts) < 0.7 else (low, middle)
    expected = rates(low)
    assert expected[0] > expected[1] > expected[2]
    for c in range(3):
        for j in range(6):
            assert is_binomial(int(mask[target == c, j].sum()), int(counts[c]), expected[c])


def test_rates_of_modalities_hold_one_by_one_and_independently() -> None:
    n = 50_000
    for rates in ([0.1, 0.5, 0.9], [0.6, 0.7, 0.7], [0.0, 1.0, 0.4], [0.5, 0.5]):
        scenario = parse_scenario({"kind": "rates", "rates": rates})
        mask = scenario.generate(Rows(n, len(rates), 3))
        assert not mask.all(1).any() and scenario.expected_rate(len(rates)) == pytest.approx(np.mean(rates))
        for j, rate in enumerate(rates):
            assert is_binomial(int(mask[:, j].sum()), n, rate), rates
    assert (mask.sum(1) == 1).all()  # rates that add up to M - 1: each row keeps exactly one


@pytest.mark.parametrize(
    ("m", "group", "correlation", "rate"),
    [
        *((3, (), 0.1, 0.3), (3, (), -0.2, 0.3), (5, (), 0.6, 0.3), (3, (1, 2), 0.6, 0.4), (3, (0, 2), 1, 0.4)),
        *((4, (0, 1, 3), -0.3, 0.5), (4, (0, 1, 3), 0.0, 0.5), (2, (), -1, 0.5), (5, (), 0.0, 0.5)),
    ],
)
def test_correlations_and_rates_hold_for_every_pair(
    m: int, group: tuple[int, ...], correlation: float, rate: float
) -> None:
    n = 50_000
    scenario = parse_scenario(
        {"kind": "correlated", "modalities": list(group), "correlation": correlation, "rate": rate}
    )
    assert parse_scenario(scenario.name) == scenario
    mask = scenario.generate(Rows(n, m, 4))
    assert not mask.all(1).any()
    columns = group or tuple(range(m))
    assert not np.delete(mask, columns, 1).any()
    for j in columns:
        assert is_binomial(int(mask[:, j].sum()), n, rate)
    for j, k in itertools.combinations(columns, 2):
        together = rate**2 + correlation * rate * (1 - rate)  # the chance of both to be missing
        assert is_binomial(int((mask[:, j] & mask[:, k]).sum()), n, together)


@pytest.mark.parametrize("keeps_one", [False, True])
def test_correlations_reach_the_bounds_of_exchangeable_indicators(keeps_one: bool) -> None:
    """By linear programming over the distribution of the number of missing modalities."""
    for k, rate in itertools.product((2, 3, 5), (0.1, 0.3, 0.5)):
        numbers = np.arange(k if keeps_one else k + 1)
        constraints = {"A_eq": [np.ones(len(numbers)), numbers], "b_eq": [1, k * rate]}
        pairs = numbers * (numbers - 1) / (k * (k - 1))
        low, _, high = correlations(k, rate, keeps_one).values()
        for sign, reached in ((1, low), (-1, high)):
            best = sign * linprog(sign * pairs, **constraints).fun
            assert reached == pytest.approx((best - rate**2) / (rate * (1 - rate)), abs=1e-9), (k, rate)
        assert correlations(k, rate, keeps_one)["independent"] == pytest.approx(0, abs=1e-12) or keeps_one


def test_patterns_have_their_weights(data: AllKinds, tmp_path: Path) -> None:
    mask = parse_scenario("patterns_none-2_12-1_0-1").generate(Rows(N, 3, 1))
    for pattern, share in (((0, 0, 0), 0.5), ((0, 1, 1), 0.25), ((1, 0, 0), 0.25)):
        assert is_binomial(int((mask == np.array(pattern, bool)).all(1).sum()), N, share)
    with pytest.raises(UserError, match="training rows lacks no modality, so nothing would be missing"):
        data.masks("test", parse_scenario("like_train"))
    folder = tmp_path / "gaps"
    gaps = all_kinds(folder, N)
    np.save(folder / "train" / "sound_absent.npy", np.arange(N) % 4 == 0)
    np.save(folder / "train" / "note_absent.npy", np.arange(N) % 8 == 0)
    mask, _ = gaps.masks("test", parse_scenario("patterns_like_train"))
    assert is_binomial(int((mask[:, 4] & mask[:, 3]).sum()), N, 1 / 8)
    assert is_binomial(int((mask[:, 4] & ~mask[:, 3]).sum()), N, 1 / 8)
    assert mask.any(1).sum() == mask[:, 4].sum() and parse_scenario("like_train").name == "patterns_like_train"


@pytest.mark.parametrize("name", [*NAMES, "patterns_like_train"])
def test_a_row_keeps_the_only_modality_that_its_source_has(tmp_path: Path, name: str) -> None:
    n = 300
    only = np.arange(n) % 6  # row i has modality i mod 6 alone, if i is below 60
    absent = (only[:, None] != np.arange(6)) & (np.arange(n) < 60)[:, None]
    arrays = {f"{m.name}_absent": absent[:, j] for j, m in enumerate(AllKinds.modalities)}
    data = all_kinds(tmp_path, n, arrays)
    np.save(tmp_path / "train" / "sound_absent.npy", np.arange(n) % 4 == 0)
    mask, _ = data.masks("test", parse_scenario(name))
    assert not mask.all(1).any() and np.array_equal(mask[:60], absent[:60])


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.fixed_dictionaries(
            {
                "kind": st.just("mar"),
                "modality": st.integers(0, 12),
                "column": st.none() | st.text("abz_ -.3é", min_size=1),
                "slope": st.floats(-50, 50).filter(lambda slope: slope != 0),
                "rate": st.floats(0, 1),
            }
        ),
        st.fixed_dictionaries(
            {
                "kind": st.just("mnar"),
                "depends_on": st.sampled_from(["class", "content", "0", "11"]),
                "rate": st.floats(0, 1),
            }
        ),
        st.fixed_dictionaries({"kind": st.just("rates"), "rates": st.lists(st.floats(0, 1), min_size=1, max_size=4)}),
        st.fixed_dictionaries(
            {
                "kind": st.just("correlated"),
                "modalities": st.sets(st.integers(0, 14), min_size=2).map(sorted) | st.just([]),
                "correlation": st.floats(-1, 1),
                "rate": st.floats(0.01, 0.99),
            }
        ),
        st.fixed_dictionaries(
            {
                "kind": st.just("patterns"),
                "patterns": st.dictionaries(
                    st.frozensets(st.integers(0, 14), max_size=3), st.floats(1e-3, 1e3), min_size=1, max_size=4
                ).map(lambda d: [{"missing": sorted(s), "weight": w} for s, w in d.items()]),
            }
        ),
    )
)
def test_names_of_mechanisms_read_back(spec: dict[str, Any]) -> None:
    scenario = parse_scenario(spec)
    assert parse_scenario(scenario.name) == scenario
    assert parse_scenario(f"noise_gaussian_4_all+{scenario.name}").name == f"noise_gaussian_4_all+{scenario.name}"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mar_x_0.4", "'x' is no number of a modality, write for example mar_0_0.4"),
        ("mar_7_0.4", "there is no modality 7"),
        ("mar_0_1.4", "the rate 1.4 is outside"),
        ("mar_0_slope0_0.4", "'0' is no slope"),
        ("mnar_sex_0.4", "'sex' is neither class, content nor the number of a modality"),
        ("mnar_class-age_0.4", "a column is of a modality, not of 'class'"),
        ("mnar_content_0.9", "would leave no modality of 3 in some rows: the highest rate is 0.6667"),
        ("rates_0.1_0.2", "has 2 rates, the data set 3 modalities"),
        ("rates_0.9_0.9_0.9", "the rates may add up to 2 at most, not 2.7"),
        ("rates_0.1_0.2_x", "'x' is not a rate"),
        ("rates_0.1_0.2_1.3", "the rate 1.3 is outside"),
        ({"kind": "rates", "rates": 0.4}, "a list with one rate per modality"),
        ("correlated_0.9_0.4", "at rate 0.4, correlations lie between -0.389 and 0.167 for 3 modalities, one of which"),
        ("correlated_12_-0.9_0.4", "at rate 0.4, correlations lie between -0.667 and 1 for 2 modalities"),
        ("correlated_1_0.5_0.4", "between two modalities or more"),
        ("correlated_0.5", "'' is not a correlation"),
        ("correlated_0.5_0", "the rate 0 is outside (0, 1)"),
        ("correlated_3_0.4", "the correlation 3 is outside [-1, 1]"),
        ("correlated_0.1_0.7", "the highest rate is 0.6667"),
        ("patterns_", "'' are no numbers of modalities"),
        ("patterns_1-0", "a weight is a positive number"),
        ("patterns_1-x", "'x' is not a weight"),
        ("patterns_012-1", "a pattern leaves nothing present, one of 3 must stay"),
        ("patterns_12-1_21-1", "a pattern is named twice"),
        ({"kind": "patterns", "patterns": {"12": 0.5}}, "patterns is like_train, or a list such as"),
        ({"kind": "patterns", "patterns": [{"missing": [1]}]}, "patterns is like_train, or a list such as"),
    ],
)
def test_impossible_mechanisms_are_refused_in_one_line(spec: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_scenarios([spec], 3)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mar_0_0.4", "mnar_0_0.4", "mnar_content_0.4", "correlated_0.5_0.3"])
def test_mechanisms_need_a_second_modality(name: str) -> None:
    with pytest.raises(UserError, match=r"one modality, which must stay|two modalities or more|highest rate is 0"):
        parse_scenarios([name], 1)


def test_masks_of_higher_rates_contain_those_of_lower_rates(data: AllKinds) -> None:
    for family in ("mar_1-age", "mnar_4"):
        masks = [data.masks("val", parse_scenario(f"{family}_{rate}"))[0] for rate in (0, 0.2, 0.5, 0.9, 1)]
        assert all((small <= large).all() for small, large in itertools.pairwise(masks))
        assert not masks[0].any() and masks[-1].any(0).sum() == masks[-1].all(0).sum()
