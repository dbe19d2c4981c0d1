"""Summaries and tables: means, marks, rates, escapes."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest

from tests.trainers.report.runs import frame_of
from trainers.report import plots, style
from trainers.report.runs import KEY
from trainers.report.tables import (
    print_table,
    rate_notes,
    score_text,
    summarise,
    table,
    to_latex,
    to_markdown,
    with_rates,
)


def test_mean_and_sd_agree_with_numpy(made):
    result, runs = made
    rows = pd.concat([pd.read_csv(run / "results.csv", keep_default_na=False) for run in runs])
    assert len(result.summary) == len(rows) // 3
    for _, row in result.summary.iterrows():
        values = rows.loc[(rows[KEY] == row[KEY]).all(axis=1), "value"].to_numpy(float)
        np.testing.assert_allclose([row["mean"], row["sd"]], [values.mean(), values.std(ddof=1)], atol=1e-12)
        assert row["n_seeds"] == 3
    assert "none" in set(result.summary["scenario"])  # pandas would read this word as NaN


def test_tables_show_the_realised_rate_and_curves_lie_at_it():
    frame = frame_of({("A", "none"): [0.9], ("A", "random_0.2"): [0.7], ("A", "random_0.5"): [0.5]})
    frame["missing_rate"] = frame["scenario"].map({"none": 0.0, "random_0.2": 1 / 6, "random_0.5": 0.5})
    summary = summarise(frame)
    cells = with_rates(table(summary, "accuracy"), summary)
    assert cells.loc["missing rate"].tolist() == ["0", "0.167", "0.5"]
    note = "random_0.2: realised missing rate 0.167, not 0.2"
    assert rate_notes(summary) == [note] and note in print_table(summary, "accuracy")
    (axes,) = plots.degradation(summary, "accuracy", style.model_styles(["A"])).axes
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 1 / 6, 0.5])


def test_marks_ties_oracles_and_single_seeds():
    cells = {
        ("A", "s"): [0.90001, 0.9],
        ("B", "s"): [0.9, 0.9],
        ("C", "s"): [0.8, 0.8],
        ("A/oracle_subset", "s"): [1.0, 1.0],
        ("C", "lone"): [0.5],
        ("A/oracle_subset", "lone"): [0.7],
    }
    summary = summarise(frame_of(cells))
    shown = table(summary, "accuracy", "markdown")
    assert shown["s"].tolist() == ["**90.00 ± 0.00**", "**90.00 ± 0.00**", "_80.00 ± 0.00_", "100.00 ± 0.00"]
    assert shown["lone"].tolist() == ["–", "–", "50.00", "70.00"]  # one rival is no contest; one seed has no SD
    assert shown.index[-1] == "A/oracle_subset†"
    assert table(summary, "accuracy", "html").iloc[0, 0] == "<b>90.00 ± 0.00</b>"
    text = print_table(summary, "accuracy", models=["B", "C"])
    assert "90.00 ± 0.00*" in text and "80.00 ± 0.00+" in text and "†" not in text and "A" not in text.split()


@pytest.mark.parametrize(
    ("mean", "sd", "digits", "expected"),
    [
        (90.126, 0.004, 2, "90.13 ± 0.00"),
        (0.0791, 0.00017, None, "0.07910 ± 0.00017"),  # as many decimals as two digits of the SD
        (12.3456, 2.34, None, "12.3 ± 2.3"),
        (1234.56, 234.0, None, "1235 ± 234"),
        (0.123456, math.nan, None, "0.1235"),
        (0.5, 0.0, None, "0.5 ± 0"),
        (math.nan, math.nan, None, "–"),
    ],
)
def test_a_score_and_its_spread_have_the_same_decimals(mean, sd, digits, expected):
    assert score_text(mean, sd, digits) == expected


def test_scores_that_look_equal_are_equal_in_rank():
    cells = {("A", "s"): [0.1, 0.9], ("B", "s"): [0.104, 0.904], ("C", "s"): [1.0, 3.0]}
    shown = table(summarise(frame_of(cells, "nll")), "nll")["s"]
    assert shown.tolist() == ["0.50 ± 0.57*", "0.50 ± 0.57*", "2.0 ± 1.4+"]


@pytest.mark.parametrize(("metric", "best"), [("ece", "A"), ("auroc", "B"), ("accepted_share", None), ("loss", None)])
def test_better_side_of_each_metric(metric, best):
    summary = summarise(frame_of({("A", "s"): [0.1], ("B", "s"): [0.2]}, metric))
    shown = table(summary, metric)["s"]
    assert shown.index[shown.str.endswith("*")].tolist() == [best] * (best is not None)
    assert shown["A"].startswith("0.1" if metric == "loss" else "10.00")


def test_latex_escapes_and_markdown_pipes():
    summary = summarise(frame_of({("DyMo_aware/oracle_x", "random_0.4"): [0.5, 0.7], ("a|b&c", "none"): [0.5]}))
    latex = to_latex(table(summary, "accuracy", "latex"))
    assert r"DyMo\_aware/oracle\_x$^\dagger$" in latex and r"random\_0.4" in latex and r"a\textbar{}b\&c" in latex
    assert r"60.00 $\pm$ 14.14" in latex and "±" not in latex and "–" not in latex
    assert r"a\|b&c" in to_markdown(table(summary, "accuracy", "markdown"))


@pytest.mark.parametrize(
    ("name", "markdown", "latex"),
    [
        ("a|b", r"a\|b", r"a\textbar{}b"),
        ("x_1 & y", "x_1 & y", r"x\_1 \& y"),
        ("*z* _u_ `v`", r"\*z\* \_u\_ \`v\`", r"*z* \_u\_ `v`"),
        ("<i>", r"\<i>", r"\textless{}i\textgreater{}"),
        ("[w](http://x)", r"[w]\(http://x)", r"[w](http://x)"),
        ("&lt; 5 %\n$", r"\&lt; 5 % $", r"\&lt; 5 \% \$"),
    ],
)
def test_names_are_no_markup(name, markdown, latex):
    summary = summarise(frame_of({(name, "none"): [0.9], ("B", "none"): [0.8]}))
    assert table(summary, "accuracy", "markdown").index[0] == markdown
    assert table(summary, "accuracy", "latex").index[0] == latex
    lines = to_markdown(table(summary, "accuracy", "markdown")).splitlines()
    assert len(lines) == 4 and all(re.sub(r"\\.", "", line).count("|") == 3 for line in lines)
