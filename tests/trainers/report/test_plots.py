"""Figures: curves, bars, styles, rewards, the picture of a selection."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from datasets.missingness.base import MISSING_RATE, NOISE_LEVEL
from datasets.missingness.parse import EXAMPLES, parse_scenario
from tests.trainers.report.runs import frame_of
from trainers import figures
from trainers.report import distributions, pictures, plots, style
from trainers.report.runs import scenario_of
from trainers.report.tables import summarise
from utils.errors import UserError

# Names of scenarios with a rate, without the rate.
FAMILIES = [
    name.rpartition("_")[0] + "_"
    for examples in EXAMPLES.values()
    for name in examples
    if not name.startswith("subsets") and (place := parse_scenario(name).place()) and place.axis == MISSING_RATE
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_a_rate_has_a_curve_from_complete_data(family):
    assert scenario_of(f"{family}0.4").named_rate == 0.4
    cells = {("A", "none"): [0.9], ("A", f"{family}0.6"): [0.5], ("A", f"{family}0.4"): [0.7]}
    (axes,) = plots.degradation(summarise(frame_of(cells)), "", style.model_styles(["A"])).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 0.9], [0.4, 0.7], [0.6, 0.5]])


def test_last_rewards_takes_the_step_of_the_verdict():
    nan = np.nan
    rewards = np.array([[[0.2, 0.5, nan], [-0.1, nan, nan]], [[nan, nan, nan], [nan, nan, nan]]])
    last, accepted = distributions.last_rewards(rewards, np.array([[1, -1, -1], [-1, -1, -1]]))
    np.testing.assert_array_equal(last, [[-0.1, 0.5, nan], [nan, nan, nan]])
    assert accepted.tolist() == [[False, True, False], [False, False, False]]


def test_degradation_draws_what_the_summary_says():
    cells = {("A", "none"): [0.9, 0.8], ("A", "random_0.5"): [0.5, 0.6], ("A", "random_global_0.2"): [0.7, 0.7]}
    summary = summarise(frame_of(cells | {("B", "whole_1"): [0.3]}))
    styles = style.model_styles(["A", "B"])
    exact, other = plots.degradation(summary, "accuracy", styles).axes
    np.testing.assert_allclose(exact.lines[0].get_xydata(), [[0, 0.85], [0.5, 0.55]])
    np.testing.assert_allclose(other.lines[0].get_xydata(), [[0, 0.85], [0.2, 0.7]])
    assert len(exact.lines) == 1 and plots.degradation(summary[summary["model"] == "B"], "", styles) is None
    (bars,) = plots.scenario_bars(summary, "accuracy", styles).axes
    assert [patch.get_height() for patch in bars.patches] == [pytest.approx(0.3)]
    assert plots.scenario_bars(summary[summary["model"] == "A"], "", styles) is None


def test_noise_curves_have_a_panel_for_each_modality_and_pattern():
    cells = {
        ("A", "none"): [0.9, 0.8],
        ("A", "random_0.6"): [0.7, 0.7],
        ("A", "noise_gaussian_10_all"): [0.2, 0.4],
        ("A", "noise_gaussian_4_all"): [0.5, 0.6],
        ("A", "noise_gaussian_4_all+random_0.6"): [0.4, 0.4],
    }
    summary = summarise(frame_of(cells))
    styles = style.model_styles(["A"])
    alone, pair = plots.degradation(summary, "accuracy", styles, NOISE_LEVEL).axes
    np.testing.assert_allclose(alone.lines[0].get_xydata(), [[1, 0.85], [4, 0.55], [10, 0.3]])
    np.testing.assert_allclose(pair.lines[0].get_xydata(), [[1, 0.7], [4, 0.4]])
    assert pair.get_title().split("\n") == ["D, Gaussian noise on all modalities, 60 % of", "modalities"]
    assert plots.degradation(summary[summary["scenario"] == "none"], "", styles, NOISE_LEVEL) is None


def test_styles_are_distinct():
    models = [f"m{i}" for i in range(20)] + ["m0/discard", "m0/oracle_subset", "m1/oracle_subset"]
    styles = style.model_styles(models)
    assert set(styles) == set(models)
    assert len({(s["color"], s["marker"], str(s["linestyle"])) for s in styles.values()}) == len(models)


def test_training_curves_of_sparse_columns():
    frame = pd.DataFrame(
        {"epoch": [0, 0, 1, 1], "train_loss": [2, None, 1, None], "val_accuracy": [None, 0.5, None, 0.7]}
    )
    losses, scores = plots.training_curves({0: frame, 1: frame}, "t").axes
    assert len(losses.lines) == 2
    np.testing.assert_allclose(losses.lines[0].get_xydata(), [[0, 2], [1, 1]])
    np.testing.assert_allclose(scores.lines[1].get_xydata(), [[0, 0.5], [1, 0.7]])
    assert plots.training_curves({0: frame[["epoch"]]}, "t") is None


def test_the_picture_of_a_selection_shows_the_rows_that_say_most(made, tmp_path, monkeypatch):
    _, runs = made
    drawn = []
    samples = pictures.samples
    monkeypatch.setattr(
        pictures, "samples", lambda data, *args, **more: drawn.append(data) or samples(data, *args, **more)
    )
    stored = np.load(runs[0] / "examples" / "random_0.4.npz")
    ranks = []
    for k in range(len(stored["index"])):
        missing, accepted = int(stored["missing"][k].sum()), int((stored["accepted"][k] >= 0).sum())
        rewards = [r for r in stored["rewards"][k].flatten().tolist() if r == r]
        is_right = stored["prediction"][k] == stored["target"][k]
        ranks.append((0 < accepted < missing, is_right, missing, max(rewards, default=-np.inf), -k))
    best = sorted(range(len(ranks)), key=lambda k: ranks[k], reverse=True)[:2]
    figures.main(["selection", str(tmp_path / "a.png"), str(runs[0]), "--scenario", "random_0.4"])
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert drawn[0]["index"].tolist() == stored["index"][best].tolist()
    assert np.array_equal(drawn[0]["recovered_mnist_a"], stored["recovered_mnist_a"][best])
    assert np.array_equal(drawn[0]["class_names"], stored["class_names"])
    with pytest.raises(UserError, match=r"no examples of 'random_0\.9' \(it has .*whole_2\): give --scenario"):
        figures.main(["selection", str(tmp_path / "b.png"), str(runs[0]), "--scenario", "random_0.9"])
    with pytest.raises(UserError, match="selection draws one run"):
        figures.main(["selection", str(tmp_path / "b.png"), str(runs[0]), str(runs[1])])
