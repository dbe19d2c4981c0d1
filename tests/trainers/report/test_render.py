"""The page of a report: structure, numbers, foreign text, charts, and its script in a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.trainers.report.runs import frame_of, write_run
from trainers.report import charts, curves, render
from trainers.report.content import content_of
from trainers.report.costs import cost_rows, cost_table
from trainers.report.headline import headline_scenarios, headlines
from trainers.report.run_tables import run_groups, setting_differences
from trainers.report.runs import gather
from trainers.report.statistics import TESTS
from trainers.report.style import model_styles
from trainers.report.tables import summarise

VOID = {"wbr", "meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, tables as rows of cells, and the nesting of tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[tuple[str, dict[str, str], str]]]] = []
        self.open: list[str] = []
        self.section = ""
        self.sections: list[str] = []  # of the tables
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        if tag == "section":
            self.section = values["id"]
        elif tag == "table":
            self.tables.append([])
            self.sections.append(self.section)
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append((tag, values, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            tag, values, text = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (tag, values, text + data)


@pytest.fixture(scope="module")
def page(made) -> Page:
    return Page(made[0].html.read_text())


def test_ids_headers_and_names(page: Page) -> None:
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids)) > 15
    assert len(page.tables) > 12
    for table in page.tables:
        assert {tag for tag, _, _ in table[0]} == {"th"} and all(v["scope"] == "col" for _, v, _ in table[0])
        assert all(row[0][0] == "th" and row[0][1]["scope"] == "row" for row in table[1:])
        assert len({len(row) for row in table}) == 1
    for tag, values in page.tags:
        if tag in ("svg", "table") and "aria-hidden" not in values:
            assert values["aria-label"]
    assert all(values.get("alt") for tag, values in page.tags if tag == "img")


def test_nothing_is_loaded_from_a_network_and_every_link_leads_somewhere(made, page: Page) -> None:
    folder, text = made[0].html.parent, made[0].html.read_text()
    ids = {values["id"] for _, values in page.tags if "id" in values}
    links = [
        (tag, v[name]) for tag, v in page.tags for name in ("src", "href", "srcset", "action", "data") if name in v
    ]
    for tag, link in links:
        assert tag in ("a", "img") and not link.startswith(("http", "//", "file"))
        if link.startswith("#"):
            assert link[1:] in ids
        elif not link.startswith("data:image/png;base64,"):
            assert (folder / link).is_file(), link
    assert {"results.csv", "summary.csv", "summary_ece.tex", "costs.csv", "figures/degradation_accuracy.pdf"} <= {
        link for _, link in links
    }
    assert {"link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert "@import" not in text and "url(" not in text
    pictures = [values for tag, values in page.tags if tag == "img"]
    scores = ("degradation_*", "scenarios_*", "noise_*", "costs_*")
    drawn = set((folder / "figures").glob("*.png")) - {f for s in scores for f in (folder / "figures").glob(f"{s}.png")}
    assert {values["alt"] for values in pictures} == {file.stem for file in drawn}
    environment = [[cell for _, _, cell in row] for table in page.tables for row in table]
    assert ["git_commit", "abc123"] in environment and f"{2:016x}" in text


def test_tables_have_the_numbers_of_the_csv_file(made, page: Page) -> None:
    summary = pd.read_csv(made[0].html.parent / "summary.csv", keep_default_na=False, na_values={"mean": ""})
    summary = summary.set_index(["metric", "model", "scenario"])
    compared = 0
    for section, table in zip(page.sections, page.tables):
        if not section.startswith("metric-"):
            continue
        factor = 1 if section == "metric-iterations" else 100
        scenarios = [values.get("data-scenario", "") for _, values, _ in table[0]]
        for row in table[1:-1]:
            for scenario, (_, values, text) in list(zip(scenarios, row))[1:]:
                key = (section.removeprefix("metric-"), row[0][2].removesuffix("†"), scenario)
                if text == "–":
                    assert key not in summary.index
                    continue
                mean = factor * summary.loc[key, "mean"]
                assert float(values["data-v"]) == pytest.approx(mean)
                assert float(text.split(" ± ")[0]) == pytest.approx(mean, abs=0.0051)
                compared += 1
    assert compared == len(summary)


def test_differences_have_the_numbers_of_the_csv_file(made, page: Page) -> None:
    tests = pd.read_csv(made[0].html.parent / "tests.csv", keep_default_na=False)
    head, *rows = page.tables[page.sections.index("differences")]
    columns = [text for _, _, text in head]
    assert columns == [name for name in tests if name not in ("dataset", "metric")] and len(rows) == len(tests)
    for (_, expected), row in zip(tests.iterrows(), rows):
        assert [row[columns.index(name)][2] for name in ("best", "model", "test")] == [
            expected[name] for name in ("best", "model", "test")
        ]
        for name in ("difference", "low", "high", "p_holm", "n_rows"):
            shown, value = row[columns.index(name)], expected[name]
            assert (float(shown[1]["data-v"]) == pytest.approx(float(value))) if value != "" else shown[2] == ""


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'"
    runs = [write_run(tmp_path, model, 0, dataset=f"D{evil}", scenarios=("none", "whole_2", "random_0.4"), n=12)
            for model in ("M3Care", "CMPT_x")]  # fmt: skip
    for run, model in zip(runs, ("M3Care", "CMPT_x")):
        frame = pd.read_csv(run / "results.csv", keep_default_na=False)
        frame["model"] = model + evil
        frame.to_csv(run / "results.csv", index=False)
        (run / "masks").mkdir()
        names = ["image", "text", "</script><script>alert(2)</script>"]
        (run / "masks" / "none.json").write_text(json.dumps({"modalities": names}))
    content = content_of(runs, tmp_path, ["accuracy"], "accuracy")
    text = render.render_page(content, "</title><b>", {}, tmp_path)
    tags = Page(text).tags
    assert sum(tag == "script" for tag, _ in tags) == 1 and not any("onerror" in values for _, values in tags)
    assert "</title><b>" not in text and "alert(2)" in text
    assert any(values.get("data-model") == "M3Care" + evil for tag, values in tags if tag == "g")


def test_pictures_are_inside_while_the_page_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of([write_run(tmp_path, "M3Care", 0, n=12)], tmp_path, ["accuracy"], "accuracy")
    files = [tmp_path / f"{name}.png" for name in "abcde"]
    for file in files:
        file.write_bytes(bytes(30_000))

    def sources() -> tuple[int, list[str]]:
        text = render.render_page(content, "t", {"samples": files[:2], "training": files[2:]}, tmp_path)
        return len(text.encode()), [values["src"] for tag, values in Page(text).tags if tag == "img"]

    size, embedded = sources()
    assert size < render.LIMIT and all(source == f"data:image/png;base64,{'A' * 40_000}" for source in embedded)
    monkeypatch.setattr(render, "LIMIT", size - 50_000)
    size, partly = sources()
    assert size <= render.LIMIT and partly == [*embedded[:3], "d.png", "e.png"]


def test_curves_are_drawn_at_the_values_of_the_summary() -> None:
    cells = {
        ("A", "none"): [0.9, 0.7],
        ("A", "random_0.5"): [0.5, 0.6],
        ("B", "none"): [0.4],
        ("B", "random_0.5"): [0.2],
    }
    summary = summarise(frame_of(cells))
    (panel,) = curves.curve_panels(summary)
    chart = str(charts.curve_chart(panel, "accuracy", "missing rate", model_styles(["A", "B"]), {"none": "complete"}))
    series = dict(re.findall(r'data-model="(.)" data-p="([^"]+)"', chart))
    points = {model: [p.split("|") for p in text.split(";")] for model, text in series.items()}
    assert [p[3] for p in points["A"]] == ["0.80 ± 0.14", "0.550 ± 0.071"]
    assert [p[3] for p in points["B"]] == ["0.4", "0.2"]
    x, y = (np.array([[float(p[k]) for p in points[model]] for model in "AB"]) for k in (0, 1))
    assert (x[0] == x[1]).all() and x[0, 0] < x[0, 1]
    # Heights are linear in the scores, with larger scores higher up.
    slope = np.polyfit([0.8, 0.55, 0.4, 0.2], y.ravel(), 1)
    np.testing.assert_allclose(np.polyval(slope, [0.8, 0.55, 0.4, 0.2]), y.ravel(), atol=0.11)
    assert slope[0] < 0 and chart.count('class="band"') == 1  # one run has no band
    groups = json.loads(re.search(r'data-groups="([^"]+)"', chart)[1].replace("&#34;", '"'))
    assert [name for _, name in groups] == ["complete (missing rate 0)", "random_0.5 (missing rate 0.5)"]


@pytest.mark.parametrize(("low", "high"), [(0.123, 97.0), (-3e-4, 2e-3), (5.0, 5.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    for is_log in (False, True) if low > 0 else (False,):
        scale = (
            charts.Scale(*charts.padded([low, high]), 40, 340, is_log)
            if not is_log
            else charts.Scale(1e3, 2e7, 40, 340, True)
        )
        ticks = scale.ticks()
        assert len(ticks) > 1 and all(39.9 <= scale(tick) <= 340.1 for tick in ticks)
    assert [charts.number_text(v) for v in (0.25, 1234, 20_000, 999_700, 1.5e6, 999.7e6, -0.5)] == [
        "0.25",
        "1234",
        "20 k",
        "1 M",
        "1.5 M",
        "1 G",
        "−0.5",
    ]


def test_front_of_cost_and_score_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"cost": rng.integers(1, 6, 40), "better": rng.integers(1, 9, 40)}).astype(float)
    rows = rows.drop_duplicates()
    expected = [
        not any(
            (o.cost <= r.cost and o.better >= r.better) and (o.cost, o.better) != (r.cost, r.better)
            for o in rows.itertuples()
        )
        for r in rows.itertuples()
    ]
    assert charts.pareto(rows).tolist() == expected


def test_costs_meet_the_scores_of_their_models(made, page: Page) -> None:
    costs, summary = cost_table(gather(made[1])[0]), made[0].summary
    rows = cost_rows(costs, summary, "PolyMNIST", "random_0.4", "accuracy").set_index(["model", "quantity"])
    mean = summary.query("model == 'DyMo' and scenario == 'random_0.4' and metric == 'accuracy'")["mean"].item()
    assert rows.loc[("DyMo", "fit_seconds"), ["cost", "mean"]].tolist() == [3.0, 100 * mean]
    assert rows.loc[("CMPT_x", "parameters"), "cost"] == 6000 and (rows["better"] == rows["mean"]).all()
    rows = cost_rows(costs, summary, "PolyMNIST", "none", "ece")
    assert (rows["better"] == -rows["mean"]).all() and set(rows["model"]) == {"DyMo", "M3Care", "CMPT_x"}
    assert (made[0].html.parent / "figures" / "costs_PolyMNIST_accuracy.pdf").is_file()
    table = page.tables[page.sections.index("costs")]
    assert ["DyMo", "4000"] in [[row[0][2], row[2][2]] for row in table[1:]]


def test_headline_is_the_test_of_the_best_against_the_next() -> None:
    cells = {
        (m, s): v for m, v in (("A", [0.9, 0.8]), ("B", [0.7, 0.8]), ("C", [0.1, 0.2])) for s in ("none", "random_0.5")
    }
    cells |= {("A/oracle_subset", "none"): [1.0, 1.0], ("A", "random_0.2"): [0.8, 0.8], ("A", "whole_1"): [0.9, 0.8]}
    summary = summarise(frame_of(cells))
    assert headline_scenarios(summary) == ["none", "random_0.5"]
    row = dict.fromkeys(TESTS) | {"dataset": "D", "scenario": "none", "best": "A"}
    tests = pd.DataFrame(
        [
            row | {"model": "A/oracle_subset†", "difference": -0.15},
            row | {"model": "C", "difference": 0.7, "low": 0.6, "high": 0.8, "p_holm": 0.01},
            row | {"model": "B", "difference": 0.1, "low": -0.012, "high": 0.212, "p_holm": 0.061},
            row | {"model": "B", "scenario": "random_0.5", "difference": 0.1, "low": np.nan, "high": np.nan},
        ]
    )
    first, second = headlines(summary, tests, "accuracy", {"D": {"none": "complete"}})
    assert (first.scenario, first.model, first.score, first.repeats) == ("complete", "A", "85.00 ± 7.07", "2 seeds")
    assert first.difference == (
        "10.00 points better than B, the next (95 % interval −1.20 to 21.20, adjusted p = 0.061). "
        "The interval includes 0."
    )
    assert second.scenario == "random_0.5" and "no interval" in second.difference
    level = tests.assign(difference=1e-6, low=-0.01)
    assert headlines(summary, level, "accuracy", {"D": {}})[0].difference.startswith(
        "Level with B (95 % interval −1.00"
    )
    assert headlines(summary.assign(metric="iterations"), tests, "iterations", {}) == []
    # For an error, lower is better: C is best, and its distance to the next is positive.
    lower = summary.assign(metric="ece")
    tests = pd.DataFrame([row | {"best": "C", "model": "B", "difference": -0.6, "low": -0.7, "high": -0.5}])
    tests["p_holm"] = np.nan
    card = headlines(lower[lower["scenario"] == "none"], tests, "ece", {"D": {}})[0]
    assert (
        card.model == "C" and card.difference == "60.00 points better than B, the next (95 % interval 50.00 to 70.00)."
    )


@pytest.mark.parametrize(
    ("metric", "numbers", "expected"),
    [
        # Of a metric that is not in percent, small differences are not level.
        ("brier", (-0.004, -0.0043, -0.0037, 1e-6), "0.004 better than B, the next (95 % interval 0.0037 to 0.0043,"),
        (
            "brier",
            (0.0, -0.001, 0.001, 1.0),
            "Level with B (95 % interval −0.001 to 0.001, adjusted p = 1). The interval",
        ),
        # B has other runs than A, and on those of both it is better than A.
        (
            "accuracy",
            (-0.1, np.nan, np.nan, np.nan),
            "On the runs that both have, B, the next, is 10.00 points better; no",
        ),
        (
            "accuracy",
            (-0.1, -0.2, -0.01, 0.03),
            "On the runs that both have, B, the next, is 10.00 points better (95 % int",
        ),
        (
            "accuracy",
            (0.00001, 0.000005, 0.00002, 0.01),
            "0.00 points better than B, the next (95 % interval 0.00 to 0.00,",
        ),
    ],
)
def test_headline_says_what_the_test_says(metric: str, numbers: tuple[float, ...], expected: str) -> None:
    best, other = ([0.1, 0.1], [0.104, 0.104]) if metric == "brier" else ([0.9, 0.9], [0.8, 0.8])
    summary = summarise(frame_of({("A", "none"): best, ("B", "none"): other}).assign(metric=metric))
    row = dict.fromkeys(TESTS) | {"dataset": "D", "scenario": "none", "best": "A", "model": "B"}
    tests = pd.DataFrame([row | dict(zip(("difference", "low", "high", "p_holm"), numbers, strict=True))])
    (card,) = headlines(summary, tests, metric, {"D": {}})
    assert card.model == "A" and card.difference.startswith(expected)


def test_differences_between_configurations(made) -> None:
    runs = gather(made[1])[0]
    settings = setting_differences(runs)
    assert set(settings["setting"]) == {"model", "width"}
    (row,) = settings[(settings["setting"] == "width") & (settings["value"] == "4")].to_dict("records")
    assert row["runs"] == 3 and row["which"] == "PolyMNIST, DyMo"
    groups = run_groups(runs)
    assert [len(group.differences) for group in groups] == [3, 3, 3]
    assert list(groups[0].differences.values()) == [[], ["seed: 1"], ["seed: 2"]]
