"""Pages of docs are what the stored results give; changes of either are noticed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import t, ttest_ind

from tests.trainers.report.runs import write_committed_run
from trainers.report.docs import ROOT, evidence_note, main, pages, unbacked, update
from trainers.report.docs_blocks import BLOCKS, Block, cell_text
from trainers.report.docs_sources import Sources
from trainers.report.statistics import compare
from trainers.report.store import store
from utils.errors import UserError

PAGE = """\
# Study

<!-- table from=made models=DyMo,M3Care:other scenarios=none digits=1 -->
<!-- /table -->

The other is <!-- cell made: DyMo minus M3Care at none -->+0.00<!-- /cell --> points behind
<!-- cell made: DyMo at random_0.4, auroc -->0.0 ± 0.0<!-- /cell -->.

## Tests

<!-- comparison from=made models=DyMo,M3Care -->
<!-- /comparison -->

<!-- comparison from=made models=DyMo,M3Care against=M3Care -->
<!-- /comparison -->

<!-- comparison from=made models=DyMo,M3Care against=DyMo name=ours -->
<!-- /comparison -->

The interval is <!-- cell interval of DyMo minus M3Care at none in ours -->1.23 to 4.56<!-- /cell -->
(<!-- cell p of DyMo minus M3Care at none in ours -->p = 0.5<!-- /cell -->), the other way round
<!-- cell interval of M3Care minus DyMo at none in ours -->1.23 to 4.56<!-- /cell -->.

<!-- runs from=made -->
<!-- /runs -->
<!-- costs from=made models=DyMo:ours,M3Care -->
<!-- /costs -->
<!-- ranks from=made models=DyMo:ours,M3Care -->
<!-- /ranks -->
<!-- figure from=made file=made.png -->
<!-- /figure -->
<!-- evidence -->
<!-- /evidence -->
"""
# Page -> headings with tables of scores without stored results, and with tables from scores without predictions. Pages
# leave this list when their runs are stored; nothing is added to it.
WITHOUT_RUNS: dict[str, tuple[list[str], list[str]]] = {
    "selection": ([], ["Coherence of the imputers"]),
    "imputers": (
        [],
        ["The published objective", "With a classifier on the latent space", "Recovery methods side by side"],
    ),
    "polymnist": (["DyMo and its selection rule", "Comparison methods at equal epochs"], []),
    "udml": ([], ["Weights and predicted levels", "Weights and predicted levels for unknown speakers"]),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A repository with a study and a page."""
    root = tmp_path_factory.mktemp("repository")
    runs = [write_committed_run(root / "runs", model, seed) for model in ("DyMo", "M3Care") for seed in range(3)]
    store(root / "docs" / "results" / "made", runs)
    (root / "README.md").write_text("# Project\n")
    (root / "docs" / "results" / "study.md").write_text(PAGE)
    assert len(update(root)) == 1
    return root


@pytest.fixture
def root(stored, tmp_path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "copy"))


def test_committed_pages_are_what_the_stored_results_give():
    assert update(ROOT, is_check=True) == []


def test_tables_without_stored_runs_are_those_of_the_list():
    with Sources(ROOT / "docs" / "results") as sources:
        listed = {page.stem: unbacked(page.read_text(), sources) for page in pages(ROOT) if page.stem != "README"}
    assert {name: headings for name, headings in listed.items() if any(headings)} == WITHOUT_RUNS
    for name, headings in WITHOUT_RUNS.items():
        assert evidence_note(*headings) in (ROOT / "docs" / "results" / f"{name}.md").read_text()


def test_a_curve_ends_where_all_rows_lack_the_modality(monkeypatch):
    """In the figure of a study under the scenarios of CMPT: at 1 with the scores of whole_0 or whole_1."""
    drawn = []
    monkeypatch.setattr("trainers.report.docs_blocks.write_picture", lambda figure, file: drawn.append(figure))
    folder = ROOT / "docs" / "results"
    query = (
        "from=cmpt file=a.png models=CMPT:ours scenarios=none,image_text_text_0.9,image_text_image_0.9,whole_0,whole_1"
    )
    with Sources(folder) as sources:
        BLOCKS["figure"](Block.parse("figure", query, folder / "cmpt.md", sources))
        summary = sources["cmpt"].summary
    scores = summary[(summary.metric == "accuracy") & (summary.model == "CMPT")].set_index("scenario")["mean"]
    for axes, whole in zip(drawn[0].axes, ("whole_0", "whole_1")):
        (line,) = axes.lines
        assert line.get_label() == "ours" and line.get_xdata()[-1] == 1
        assert line.get_ydata()[-1] == pytest.approx(100 * scores[whole])


def test_a_page_shows_what_is_stored(root):
    text = (root / "docs" / "results" / "study.md").read_text()
    with Sources(root / "docs" / "results") as sources:
        frame, runs = sources["made"].frame, sources["made"].runs
        values = {
            model: 100 * part["value"]
            for model, part in frame[(frame.metric == "accuracy") & (frame.scenario == "none")].groupby("model")
        }
        rows = frame[(frame.metric == "accuracy") & frame["model"].isin(["DyMo", "M3Care"])]
        tests = compare(runs, rows, "accuracy")
    means = {model: (part.mean(), part.std()) for model, part in values.items()}
    assert f"| **{means['DyMo'][0]:.1f} ± {means['DyMo'][1]:.1f}** |" in text and re.search(r"\| other +\| _", text)
    assert f"-->{means['DyMo'][0] - means['M3Care'][0]:+.2f}<!-- /cell --> points" in text
    assert "n = 3 runs per model on 60 test rows" in text and "after Holm for the 2 comparisons" in text
    for _, row in tests.iterrows():
        assert f"{100 * row['low']:.2f} to {100 * row['high']:.2f}" in text
    # Against a named model: DyMo minus M3Care, and M3Care minus DyMo.
    line = r"^\| (\S+) +\| {} +\| {} +\| (\S+) +\| (\S+) to (\S+) +\|"
    ours, theirs = (
        {m[1]: [float(m[k]) for k in (2, 3, 4)] for m in re.finditer(line.format(*pair), text, re.M)}
        for pair in (("DyMo", "M3Care"), ("M3Care", "DyMo"))
    )
    for scenario, (difference, low, high) in ours.items():
        assert theirs[scenario] == [-difference, -high, -low] and low <= difference <= high
    (row,) = tests[tests.scenario == "none"].to_dict("records")
    assert ours["none"][0] == round(100 * (row["difference"] if row["best"] == "DyMo" else -row["difference"]), 2)
    # Sentences refer to the tests of a comparison by its name.
    bounds = [f"{100 * (value if row['best'] == 'DyMo' else -value):.2f}" for value in (row["low"], row["high"])]
    low, high = bounds if row["best"] == "DyMo" else bounds[::-1]
    assert f"in ours -->{low} to {high}<!--".replace("-->-", "-->−").replace("to -", "to −") in text
    negated = f"{-float(high):.2f} to {-float(low):.2f}".replace("-", "−")
    assert f"<!-- cell interval of M3Care minus DyMo at none in ours -->{negated}<!--" in text
    p = f"p = {row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else "p < 0.001"
    assert f"at none in ours -->{p}<!--" in text
    assert re.search(r"\| DyMo +\| seed 0, 1, 2 \| abc123456789 +\| cpu, 1 threads", text)
    # Means over the seeds; what is not known is no number.
    assert re.search(r"\| ours +\| 1\.20 +\| 1,009 +\| – +\|", text)
    # DyMo loses most under random_0.4 of these made-up runs, or not: ranks and the one pair follow from the means.
    accuracy = rows.groupby(["scenario", "model"])["value"].mean()
    first, second = (accuracy[s, "DyMo"] - accuracy[s, "M3Care"] for s in ("none", "random_0.4"))
    assert re.search(rf"\| ours +\| {1 + (first < 0)} +\| {1 + (second < 0)} +\|\n\| M3Care +\|", text)
    assert re.search(r"Kendall's τ +\| – +\| -?1\.00 \(-?1\.00 to -?1\.00\)", text)
    assert re.search(r"\d of 1 pairs: those whose order differs", text)
    assert "![accuracy (%) against the missing rate, study made](made.png)" in text
    assert (root / "docs" / "results" / "made.png").stat().st_size > 5000
    assert text.endswith("<!-- evidence -->\n<!-- /evidence -->\n")  # all tables have stored runs


def test_folds_are_compared_in_any_score():
    """Of cross-validation, a comparison needs the scores alone: the corrected resampled t-test (Nadeau and Bengio)."""
    query = "from=stress-skin metric=auroc models=MaskedAttention,Zeros_MLP scenarios=none:complete,nested_1_1 digits=2"
    folder = ROOT / "docs" / "results"
    with Sources(folder) as sources:
        text = BLOCKS["comparison"](
            Block.parse("comparison", f"{query} against=MaskedAttention", folder / "page.md", sources)
        )
    line = re.search(r"\| complete +\| Zeros_MLP +\| MaskedAttention +\| (\S+) +\| (\S+) to (\S+) +\|", text)
    values = [pd.read_csv(file) for file in sorted(folder.glob("stress-skin/*/*/stress_none/*/results.csv"))]
    values = pd.concat(values).query("scenario == 'none' and metric == 'auroc'").pivot(index="fold", columns="model")
    difference = 100 * (values["value"]["Zeros_MLP"] - values["value"]["MaskedAttention"])
    # Of the rows outside a fold, a fifth is for validation, and of the others a tenth for training.
    ratio = (1 / 5) / (4 / 5 * 0.8 * 0.1)
    half = t.ppf(0.975, 4) * difference.std(ddof=1) * (1 / 5 + ratio) ** 0.5
    expected = difference.mean(), difference.mean() - half, difference.mean() + half
    assert [float(number) for number in line.groups()] == [round(number, 2) for number in expected]
    assert "n = 5 folds; test: corrected t" in text


def test_gains_have_means_the_smallest_and_counts(stored):
    folder = stored / "docs" / "results"
    with Sources(folder) as sources:
        frame = sources["made"].frame
        texts = [
            BLOCKS["gains"](Block.parse("gains", f"from=made metric={metric}", folder / "study.md", sources))
            for metric in ("accuracy", "auroc")
        ]
    for metric, text in zip(("accuracy", "auroc"), texts, strict=True):
        rows = frame[(frame.metric == metric) & (frame.scenario == "random_0.4")]
        wide = 100 * rows.pivot(index="seed", columns="model", values="value")
        gain = wide["DyMo"] - wide["DyMo/discard"]
        line = re.search(r"\| DyMo +\| 1 +\| (\S+) +\| (\S+) \((\S+) to (\S+)\) +\| DyMo, random_0.4 +\| (\d)", text)
        assert float(line[1]) == float(line[2]) == round(gain.mean(), 2)
        low, high = float(line[3]), float(line[4])
        half = t.ppf(0.975, 2) * gain.std(ddof=1) / 3**0.5
        if metric == "auroc":  # predicted classes do not determine it: Student's t over the seeds
            assert (low, high) == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.006)
            assert "test: paired t over the runs, which says nothing about other test rows" in text
        else:
            assert low < gain.mean() < high and high - low >= 2 * half - 0.011
        assert int(line[5]) == (high < 0) and f"{int(low > 0)} (" in text.splitlines()[2].split("|")[-2]
        assert "for the 1 cells of this table); n = 3 runs per model" in text


def test_scores_that_classes_do_not_determine_are_compared_over_runs(stored):
    folder = stored / "docs" / "results"
    query = "from=made metric=auroc models=DyMo,M3Care scenarios=none against=M3Care digits=4"
    with Sources(folder) as sources:
        frame = sources["made"].frame
        text = BLOCKS["comparison"](Block.parse("comparison", query, folder / "study.md", sources))
    rows = frame[(frame.metric == "auroc") & (frame.scenario == "none")]
    wide = 100 * rows.pivot(index="seed", columns="model", values="value")
    expected = ttest_ind(wide["DyMo"], wide["M3Care"], equal_var=False).confidence_interval()
    line = re.search(r"\| none +\| DyMo +\| M3Care +\| (\S+) +\| (\S+) to (\S+) +\|", text)
    assert float(line[2]) == pytest.approx(expected.low, abs=1e-4)
    assert float(line[3]) == pytest.approx(expected.high, abs=1e-4)
    assert "test: Welch" in text and "only the runs are random" in text and "test rows;" not in text


def test_pages_are_written_once_and_a_changed_number_is_found(root):
    assert update(root) == []
    page = root / "docs" / "results" / "study.md"
    written = page.read_text()
    number = re.search(r"minus M3Care at none -->(\S+)<!--", written)[1]
    page.write_text(written.replace(f"-->{number}<!--", "-->+1.00<!--"))
    with pytest.raises(UserError, match=rf"(?s)study.md: .*\+1.00.* should be .*{re.escape(number)}"):
        main(["--check", "--root", str(root)])
    assert page.read_text() != written
    main(["study", "--root", str(root)])
    assert page.read_text() == written


def test_a_deleted_run_fails_by_name(root):
    shutil.rmtree(root / "docs" / "results" / "made" / "PolyMNIST" / "M3Care" / "default" / "seed2")
    with pytest.raises(UserError, match="the stored run PolyMNIST/M3Care/default/seed2 is absent"):
        main(["--root", str(root)])


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("<!-- table from=other -->\n<!-- /table -->", r"no study 'other' .*there are: made"),
        ("<!-- table from=other.csv -->\n<!-- /table -->", "no file .*other.csv"),
        ("<!-- table from=made models=DyMo,MUSE -->\n<!-- /table -->", "made has no model MUSE"),
        ("<!-- table from=made model=DyMo -->\n<!-- /table -->", "unknown option model"),
        (
            "<!-- table from=made name=ours -->\n<!-- /table -->",
            "unknown option name: choose from from, metric, models",
        ),
        ("<!-- gains from=made.csv -->\n<!-- /gains -->", "no file .*made.csv"),
        (
            "<!-- leads from=made file=leads.png -->\n<!-- /leads -->",
            "needs studies with stored runs in from= and and=",
        ),
        (
            "<!-- comparison from=made metric=foo -->\n<!-- /comparison -->",
            "no scores of metric foo: known are accepted_share, accuracy",
        ),
        ("<!-- gains from=made metric=foo -->\n<!-- /gains -->", "no scores of metric foo"),
        (
            "<!-- gains from=made metric=accepted_share -->\n<!-- /gains -->",
            "neither better when higher nor when lower",
        ),
        ("<!-- comparison from=made models=DyMo against=M3Care -->\n<!-- /comparison -->", "models has to name it too"),
        ("<!-- comparison from=made against=M4 -->\n<!-- /comparison -->", "made has no model M4"),
        (
            "<!-- comparison from=made against=DyMo/oracle_subset -->\n<!-- /comparison -->",
            "DyMo/oracle_subset uses labels",
        ),
        ("<!-- ranks from=made metric=auroc -->\n<!-- /ranks -->", "metric auroc: a ranking is by one of"),
        ("<!-- ranks from=made scenarios=none -->\n<!-- /ranks -->", "two or more models and scenarios"),
        ("<!-- table from=made -->\n", "has no other half"),
        ("<!-- cell made: MUSE at none -->1.0<!-- /cell -->", "made has 0 cells of MUSE at none"),
        ("<!-- cell made DyMo -->1.0<!-- /cell -->", "cannot be read"),
        ("<!-- cell p of DyMo minus M3Care at none in made -->p = 1<!-- /cell -->", "no comparison with name=made"),
        (
            "<!-- comparison from=made name=x -->\n<!-- /comparison -->\n"
            "<!-- cell p of DyMo minus MUSE at none in x -->p = 1<!-- /cell -->",
            "x has no test of DyMo and MUSE at none",
        ),
        (
            "<!-- comparison from=made name=x -->\n<!-- /comparison -->\n"
            "<!-- cell interval of DyMo minus M3Care at none in x -->about 3<!-- /cell -->",
            "cannot be read with 'about 3'",
        ),
        ("<!-- comparison from=made name=x -->\n<!-- /comparison -->\n" * 2, "two comparisons have the same name="),
    ],
)
def test_wrong_blocks_are_named(root, block, message):
    page = root / "docs" / "results" / "study.md"
    page.write_text(f"# Study\n\n{block}\n")
    with pytest.raises(UserError, match=f"(?s)study.md.*{message}"):
        update(root)


def test_cells_keep_the_form_of_the_number(root):
    (root / "docs" / "results" / "s.csv").write_text(
        "dataset,model,scenario,metric,mean,sd,n_seeds\nD,A,none,accuracy,0.90125,0.005,3\nD,B,none,accuracy,0.95,,1\n"
    )
    sources = Sources(root / "docs" / "results")
    for query, old, new in (
        ("A at none", "1", "90"),
        ("A at none", "1.00 ± 0.00", "90.12 ± 0.50"),
        ("A minus B at none", "+1.0", "−4.9"),
        ("B minus A at none", "+1.0", "+4.9"),
        ("B minus A at none", "0.00", "4.88"),  # of 95.00 and 90.12, as a table shows them
    ):
        assert cell_text(f"s.csv: {query}", old, sources) == new, query
