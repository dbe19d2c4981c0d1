"""Ranks over data sets and scenarios, against SciPy, scikit-posthocs, and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from scipy import stats

from trainers.report.ranks import compare_ranks, critical_difference, iqm, iqm_interval, probability_of_improvement
from trainers.report.runs import COLUMNS


def results(quality: dict[str, float], blocks: int = 8, seeds: int = 3, metric: str = "accuracy") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (f"D{block // 4}", model, seed, f"random_{block % 4}", metric, value + 0.02 * rng.normal(), 9)
        for (model, value), block, seed in itertools.product(quality.items(), range(blocks), range(seeds))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


QUALITY = {"low": 0.7, "high": 0.9, "middle": 0.88, "DyMo/oracle_subset": 0.99}


def test_ranks_are_those_of_scipy():
    frame = results(QUALITY)
    ranks = compare_ranks(frame, "accuracy")
    means = frame.groupby(["dataset", "scenario", "model"])["value"].mean().unstack()
    columns = [means[model] for model in ranks.table["model"]]
    assert list(ranks.table["model"]) == ["high", "middle", "low"] and ranks.blocks == 8  # without the oracle
    assert ranks.p_friedman == pytest.approx(stats.friedmanchisquare(*columns).pvalue)
    expected = stats.rankdata(-np.stack(columns), axis=0).mean(1)
    np.testing.assert_allclose(ranks.table["mean_rank"], expected)
    p = [stats.wilcoxon(columns[0] - other).pvalue for other in columns[1:]]
    # Holm: the smaller times two, the larger at least that.
    assert sorted(ranks.table["p_wilcoxon"].dropna()) == pytest.approx([min(p) * 2, max(max(p), min(p) * 2)])
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(np.stack(columns, 1))
    np.testing.assert_allclose(ranks.nemenyi.loc["high"], nemenyi[0], atol=1e-9)


def test_the_order_of_a_metric_that_is_better_low():
    ranks = compare_ranks(results(QUALITY, metric="ece"), "ece")
    assert list(ranks.table["model"]) == ["low", "middle", "high"]
    row = ranks.table.iloc[0]
    assert 0 < row["iqm_low"] < row["iqm"] < row["iqm_high"] < 0.75


def test_few_models_or_blocks_have_no_ranks():
    assert compare_ranks(results(QUALITY, blocks=4), "accuracy") is None
    assert compare_ranks(results({"a": 0.1, "b": 0.2, "c/oracle": 0.3}), "accuracy") is None
    frame = results(QUALITY)  # a block in which one model has no value is left out
    frame = frame[(frame["model"] != "low") | (frame["scenario"] != "random_0")]
    assert compare_ranks(frame, "accuracy").blocks == 6


@pytest.mark.filterwarnings("error")
def test_models_that_tie_everywhere_have_no_p_value():
    """Friedman's statistic is 0 / 0, which is no news for the user's terminal."""
    ranks = compare_ranks(results(QUALITY).assign(value=0.5), "accuracy")
    assert np.isnan(ranks.p_friedman) and (ranks.table["mean_rank"] == 2).all()


def test_interquartile_mean_by_hand():
    # 12 values: the first and last three are cut, (4 + ... + 9) / 6.
    assert iqm(np.arange(1, 13.0)) == 6.5
    assert iqm_interval([np.full(3, 0.5), np.full(3, 0.5)]) == (0.5, 0.5)


def test_interval_of_the_interquartile_mean_against_a_loop():
    rng = np.random.default_rng(1)
    blocks = [rng.normal(size=4) for _ in range(6)]
    drawn = [np.concatenate([rng.choice(block, 4) for block in blocks]) for _ in range(4000)]
    expected = np.quantile([np.sort(values)[6:18].mean() for values in drawn], (0.025, 0.975))
    assert iqm_interval(blocks) == pytest.approx(expected, abs=0.05)


def test_probability_of_improvement_by_hand():
    # Block 1: of 4 pairs 3 are above and 1 equal: 3.5 / 4. Block 2: none of 4.
    first, second = [np.array([2.0, 3.0]), np.array([0.0, 0.0])], [np.array([1.0, 2.0]), np.array([1.0, 2.0])]
    assert probability_of_improvement(first, second) == pytest.approx((3.5 / 4 + 0) / 2)


def test_a_diagram_names_every_model(tmp_path):
    figure = critical_difference(compare_ranks(results(QUALITY), "accuracy"))
    figure.savefig(tmp_path / "cd.png")
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert all(model in texts for model in ("high", "middle", "low")) and "oracle" not in texts
