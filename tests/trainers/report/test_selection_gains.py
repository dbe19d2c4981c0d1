"""Gains over discarding in all cells, and what DyMo's lead goes with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf
from statsmodels.stats.multitest import multipletests

from tests.trainers.report.runs import write_run
from trainers.config.compose import compose_config
from trainers.report.docs_blocks import BLOCKS, Block
from trainers.report.docs_sources import Source
from trainers.report.runs import FinishedRun, gather
from trainers.report.selection_gains import cells_of, correlations, gains, lead_figure
from trainers.report.statistics import compare
from utils.errors import UserError

SCENARIOS = ("none", "random_0.4", "random_0.8")


def of(runs: list[FinishedRun]) -> pd.DataFrame:
    return pd.concat([run.frame for run in runs], ignore_index=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRun]:
    root = tmp_path_factory.mktemp("runs")
    return gather([write_run(root, "DyMo", seed, scenarios=SCENARIOS) for seed in range(3)])[0]


def test_gains_are_differences_of_means_with_the_intervals_of_the_comparison(runs) -> None:
    frame = of(runs)
    found = gains(runs, frame, "accuracy")
    assert list(found["scenario"]) == ["random_0.4", "random_0.8"]  # nothing is recovered of complete rows
    assert set(found["method"]) == {"DyMo"} and set(found["rule"]) == {""}  # the oracle uses labels
    means = frame[frame.metric == "accuracy"].groupby(["model", "scenario"])["value"].mean()
    tests = compare(runs, frame[frame["model"].isin(["DyMo", "DyMo/discard"])], "accuracy", "DyMo")
    for row in found.itertuples():
        assert row.gain == pytest.approx(means["DyMo", row.scenario] - means["DyMo/discard", row.scenario])
        (test,) = tests[tests.scenario == row.scenario].to_dict("records")
        assert (row.low, row.high) == pytest.approx((test["low"], test["high"]))
    p = tests[tests.scenario != "none"]["p"]
    np.testing.assert_allclose(found["p_holm"], multipletests(p, method="holm")[1])


def test_a_lower_negative_log_likelihood_is_a_gain(runs) -> None:
    values = {"DyMo": [0.5, 0.4, 0.6], "DyMo/discard": [0.7, 0.7, 0.7], "DyMo/pool": [0.8, 0.9, 1.0]}
    rows = [
        ("PolyMNIST", model, seed, "random_0.4", "nll", value, 60)
        for model, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "model", "seed", "scenario", "metric", "value", "n"])
    frame = frame.assign(fold=-1, train="none")
    marked = [FinishedRun(run.path, frame[frame["seed"] == run.seed]) for run in runs]
    found = gains(marked, frame, "nll").set_index("rule")
    assert found.loc["", "gain"] == pytest.approx(0.2) and found.loc["pool", "gain"] == pytest.approx(-0.2)
    # Student's t over three differences with a standard deviation of 0.1.
    half = 4.302653 * 0.1 / np.sqrt(3)
    for rule, mean in (("", 0.2), ("pool", -0.2)):
        assert found.loc[rule, ["low", "high"]].tolist() == pytest.approx([mean - half, mean + half], rel=1e-5)


def test_without_discarding_there_is_nothing_to_compare_with(runs) -> None:
    frame = of(runs)
    with pytest.raises(UserError, match="no model has the comparator discard"):
        gains(runs, frame[frame["model"] == "DyMo"], "accuracy")


# --------------------------------------------------------------------------------------------------------------- leads

ACCURACIES = {
    "DyMo_A_3": {"DyMo_A_3": 0.6, "DyMo_A_3/discard": 0.5, "DyMo_A_3/impute_all": 0.9, "DyMo_A_3/oracle_subset": 0.95},
    "DyMo_A_15": {"DyMo_A_15": 0.8, "DyMo_A_15/discard": 0.75, "DyMo_A_15/impute_all": 0.7},
    "DyMo_B_3": {"DyMo_B_3": 0.5, "DyMo_B_3/discard": 0.55, "DyMo_B_3/impute_all": 0.2},
    "LogitAverage_3_A": {"LogitAverage_3_A": 0.7, "LogitAverage_3_A/discard": 0.65},
}


@pytest.fixture
def grid(tmp_path: Path) -> list[FinishedRun]:
    found = []
    for model, values in ACCURACIES.items():
        for seed in range(2):
            path = tmp_path / model / f"seed{seed}"
            path.mkdir(parents=True)
            shift = 0.01 * (2 * seed - 1)
            rows = [("D", m, seed, "random_0.8", "accuracy", value + shift, 9) for m, value in values.items()]
            frame = pd.DataFrame(rows, columns=["dataset", "model", "seed", "scenario", "metric", "value", "n"])
            epochs = 15 if "15" in model else 3
            dataset = {"modalities": list("abcde"), "training_defaults": {"max_epochs": epochs}}
            config = {"dataset": dataset, "imputer": {"name": "B" if "_B_" in model else "A"}}
            (path / "config.yaml").write_text(yaml.safe_dump(config))
            found.append(FinishedRun(path, frame.assign(fold=-1, train="none")))
    return found


@pytest.fixture
def coherence() -> pd.DataFrame:
    rows = [("D", "A", 1, 0.95), ("D", "A", 4, 0.99), ("D", "B", 1, 0.1), ("D", "A/m0", 1, 0.0)]
    frame = pd.DataFrame(rows, columns=["dataset", "model", "scenario", "value"])
    return frame.assign(metric="coherence", seed=0, n=9)


def test_a_cell_has_the_accuracies_and_the_coherence_of_its_imputer(grid, coherence) -> None:
    cells = cells_of(grid, of(grid), coherence).set_index("model")
    assert list(cells.index) == ["DyMo_A_3", "DyMo_A_15", "DyMo_B_3"]  # late fusion has no accept-all
    assert cells["observed"].tolist() == [1, 1, 1] and cells["epochs"].tolist() == [3, 15, 3]
    assert cells["coherence"].tolist() == [0.95, 0.95, 0.1]
    assert cells[["selecting", "discarding", "accepting"]].to_numpy() == pytest.approx(
        np.array([list(values.values())[:3] for values in list(ACCURACIES.values())[:3]])
    )
    assert cells["oracle"].tolist() == pytest.approx([0.95, np.nan, np.nan], nan_ok=True)
    assert cells["late"].tolist() == pytest.approx([0.65, np.nan, 0.65], nan_ok=True)  # of as many epochs


def test_correlations_are_of_leads_over_cells(grid, coherence) -> None:
    found = correlations(cells_of(grid, of(grid), coherence)).set_index("lead")
    # Coherence minus discarding: 0.45, 0.20, -0.45; leads over discarding 0.10, 0.05, -0.05: the same order.
    assert found.loc["lead over discarding", "correlation"] == pytest.approx(1.0)
    # Incoherence 0.05, 0.05, 0.9; leads over accepting all -0.3, 0.1, 0.3: ranks 1.5, 1.5, 3 and 1, 2, 3.
    assert found.loc["lead over accepting all", "correlation"] == pytest.approx(
        np.corrcoef([1.5, 1.5, 3], [1, 2, 3])[0, 1]
    )
    assert found.loc["lead over late fusion", "cells"] == 2 and np.isnan(
        found.loc["lead over late fusion", "correlation"]
    )


def test_the_figure_has_every_cell_in_every_panel(grid, coherence) -> None:
    figure = lead_figure(cells_of(grid, of(grid), coherence))
    points = [np.concatenate([dots.get_offsets() for dots in ax.collections]) for ax in figure.axes]
    assert [len(p) for p in points] == [3, 3, 3, 3]
    np.testing.assert_allclose(points[0], [[45, 10], [20, 5], [-45, -5]])
    np.testing.assert_allclose(points[1], [[5, -30], [5, 10], [90, 30]], atol=1e-9)
    np.testing.assert_allclose(points[2][0], [45, 10])
    np.testing.assert_allclose(points[3][[0, 2]], [[3, -5], [3, -15]])


def test_the_block_has_the_figure_and_the_correlations(grid, coherence, tmp_path: Path) -> None:
    frame = of(grid)
    studies = [Source("one", frame, frame, grid), Source("coherence.csv", coherence, coherence)]
    page = tmp_path / "results" / "page.md"
    page.parent.mkdir()
    block = Block(studies[0], page, page.parent / "one" / "manifest.json", file="leads.png", coherence=(studies[1],))
    text = BLOCKS["leads"](block)
    assert (
        text.startswith("![DyMo's lead in every cell](leads.png)") and (page.parent / "leads.png").stat().st_size > 5000
    )
    assert re.search(r"\| lead over discarding +\| coherence − accuracy without recoveries +\| 1\.00 +\|", text)
    assert re.search(r"\| lead over late fusion .*\| – +\|", text) and "over 1 to 3 cells per data set" in text


def test_other_patterns_than_a_fixed_number_of_missing_modalities_are_no_cells(grid, coherence) -> None:
    frame = of(grid).replace({"random_0.8": "random_bernoulli_0.8"})
    with pytest.raises(UserError, match="no run has the comparators discard and impute_all under a scenario such as"):
        cells_of(grid, frame, coherence)


@pytest.mark.parametrize(
    ("metric", "message"), [("foo", "no scores of metric foo"), ("accepted_share", "neither better when higher nor")]
)
def test_what_is_no_score_is_refused(runs, metric: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gains(runs, of(runs), metric)


def test_data_sets_are_not_mixed(runs) -> None:
    frame = of(runs)
    with pytest.raises(UserError, match="runs of several data sets"):
        gains(runs, pd.concat([frame, frame.assign(dataset="Other")]), "accuracy")


@pytest.mark.parametrize(
    ("ours", "theirs", "other"),
    [
        ({"backbone": {"width": 8}, "selection": 1}, {"backbone": {"width": 8}}, {"backbone": {"width": 9}}),
        # CMPT beside the same CMPT that selects.
        ({"select": True, "width": 8}, {"select": False, "width": 8}, {"select": False, "width": 9}),
    ],
)
def test_runs_that_share_what_was_trained_are_paired(
    ours: dict[str, Any], theirs: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    """Two rules of selection on the same trained weights, in run directories of their own."""
    made = []
    for model in ("DyMo", "M3Care"):
        for seed in range(3):
            run = write_run(tmp_path, model, seed, scenarios=("random_0.4",))
            (run / "config.yaml").write_text(yaml.safe_dump({"model": ours if model == "DyMo" else theirs}))
            made.append(run)
    paired = compare(gather(made)[0], of(gather(made)[0]).query("model in ('DyMo', 'M3Care')"), "accuracy")
    for run in made[3:]:
        (run / "config.yaml").write_text(yaml.safe_dump({"model": other}))
    apart = compare(gather(made)[0], of(gather(made)[0]).query("model in ('DyMo', 'M3Care')"), "accuracy")
    assert paired["test"].tolist() == ["same runs and rows"] and apart["test"].tolist() == ["runs and rows"]


def test_cmpt_that_selects_is_the_cmpt_that_does_not(tmp_path: Path) -> None:
    """With the shipped configuration, whatever says how it selects; not where the training differs."""

    ours, theirs = (write_run(tmp_path, model, 0, scenarios=("random_0.4",)) for model in ("DyMo", "M3Care"))

    def trained(run: Path, *overrides: str) -> tuple[str, ...]:
        cfg = compose_config("dataset=SpokenDigits", "model=CMPT", *overrides)
        (run / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        return gather([run])[0][0].trained

    plain = trained(ours)
    selecting = ["model.select=true", "model.selection.threshold=auto", "model.comparators=[discard,pool]"]
    assert plain == trained(theirs, *selecting, "model.rules.draws=2", "missing.test=[none]")
    for override in ("model.module.proxy=null", "missing.train=random_0.5", "dataset.train_fraction=0.5"):
        assert plain != trained(theirs, override)


def test_an_imputer_without_coherence_is_named(grid, coherence) -> None:
    with pytest.raises(UserError, match="no coherence of imputer B on D from 1 observed modalities"):
        cells_of(grid, of(grid), coherence[coherence["model"] != "B"])
