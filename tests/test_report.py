"""The report, on made runs in the real layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from datasets.missingness.base import MISSING_RATE, NOISE_LEVEL, slug
from datasets.missingness.parse import EXAMPLES, parse_scenario
from trainers import figures
from trainers.report import bootstrap, distributions, pictures, plots, style
from trainers.report import figures as report_figures
from trainers.report import page as report
from trainers.report.runs import COLUMNS, KEY, gather, scenario_of
from trainers.report.statistics import compare, mcnemar, paired_t
from trainers.report.tables import print_table, rate_notes, summarise, table, to_latex, to_markdown, with_rates
from utils.errors import UserError
from utils.metrics import classification_metrics, metric_names

SCENARIOS = ("none", "random_0.2", "random_0.4", "random_global_0.4", "whole_01", "whole_2", "file:masks.csv")
NAMES = ("mnist_a", "mnist_b", "text")
CLASSES = 10
QUALITY = {"DyMo": 0.9, "DyMo/discard": 0.8, "DyMo/oracle_subset": 0.97, "M3Care": 0.75, "CMPT_x": 0.7}


def write_run(
    root: Path,
    model: str,
    seed: int,
    *,
    dataset: str = "PolyMNIST",
    name: str = "default",
    n: int = 60,
    scenarios: Sequence[str] = SCENARIOS,
) -> Path:
    """A finished run; models of QUALITY that start with ``model/`` are its comparators."""
    run = root / dataset / model / name / f"seed{seed}"
    run.mkdir(parents=True)
    rng = np.random.default_rng([seed, len(model)])
    rows = []
    for member in [m for m in QUALITY if m.partition("/")[0] == model]:
        for position, scenario in enumerate(scenarios):
            folder = run / "predictions" / member.partition("/")[2]
            folder.mkdir(parents=True, exist_ok=True)
            stem = slug(scenario)
            target = np.random.default_rng(seed).integers(CLASSES, size=n)
            missing = np.random.default_rng([seed, position]).random((n, 3)) < 0.4
            missing[:, 0] &= ~missing.all(axis=1)
            right = rng.random(n) < QUALITY[member] - 0.05 * position
            logits = np.eye(CLASSES)[np.where(right, target, (target + 1) % CLASSES)] + rng.random((n, CLASSES)) * 0.1
            arrays = {"index": rng.permutation(n), "logits": logits, "target": target, "missing": missing}
            order = arrays["index"]
            arrays |= {"logits": logits[order], "target": target[order], "missing": missing[order]}
            if member == "DyMo":
                arrays |= selection(arrays["missing"], rng)
                write_examples(run / "examples" / f"{stem}.npz", arrays, rng)
            np.savez_compressed(folder / f"{stem}.npz", **arrays)
            values = {"accuracy": right.mean(), "auroc": min(right.mean() + 0.05, 1), "ece": rng.uniform(0.02, 0.1)}
            if member == "DyMo":
                values |= {"accepted_share": 0.43, "iterations": 1.375}
            rows += [(dataset, member, seed, scenario, metric, value, n) for metric, value in values.items()]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(run / "results.csv", index=False)
    about = {"versions": {"torch": "2.11"}, "device": "cpu", "git_commit": "abc123", "masks": {"none": f"{seed:016x}"}}
    (run / "environment.json").write_text(json.dumps(about))
    (run / "config.yaml").write_text(f"model: {model}\nnote: <b>see https://example.org</b>\n")
    curves = [
        f"{e},{10 * e + 9},{2 / (e + 1)},,\n{e},{10 * e + 9},,{2.2 / (e + 1)},{1 - 0.8 / (e + 1)}\n" for e in range(8)
    ]
    (run / "metrics.csv").write_text("epoch,step,train_loss,val_loss,val_accuracy\n" + "".join(curves))
    (run / "DONE").touch()
    return run


def selection(missing: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Greedy acceptance on random rewards, as DyMo stores it."""
    n, m = missing.shape
    rewards = np.full((n, m, m), np.nan, dtype=np.float32)
    accepted = np.full((n, m), -1, dtype=np.int8)
    left = missing.copy()
    for row in range(n):
        for step in range(m):
            if not left[row].any():
                break
            rewards[row, step, left[row]] = rng.normal(0.1, 0.3, left[row].sum())
            left[row] &= rewards[row, step] >= 0
            if not left[row].any():
                break
            accepted[row, step] = np.nanargmax(rewards[row, step])
            left[row, accepted[row, step]] = False
    final = missing.copy()
    for row, order in enumerate(accepted):
        final[row, order[order >= 0]] = False
    return {"final_missing": final, "accepted": accepted, "rewards": rewards}


def write_examples(path: Path, arrays: dict[str, np.ndarray], rng: np.random.Generator, k: int = 4) -> None:
    digits = load_digits()
    data = {key: arrays[key][:k] for key in ("index", "target", "missing", "final_missing", "rewards", "accepted")}
    data["prediction"] = arrays["logits"][:k].argmax(axis=1)
    data |= {"modality_names": np.array(NAMES), "class_names": np.array([f"digit {c}" for c in range(CLASSES)])}
    for name, channels in (("mnist_a", 3), ("mnist_b", 1)):
        pictures = (
            np.stack([digits.images[digits.target == t][0] * 15 for t in data["target"]]).repeat(4, 1).repeat(4, 2)
        )
        colour = rng.uniform(0.4, 1, (k, channels, 1, 1))
        data[f"original_{name}"] = (pictures[:, None] * colour).astype(np.uint8)
        data[f"recovered_{name}"] = np.clip(data[f"original_{name}"] + rng.normal(0, 30, (k, channels, 32, 32)), 0, 255)
        data[f"recovered_{name}"] = data[f"recovered_{name}"].astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **data)


def frame_of(cells: dict[tuple[str, str], list[float]], metric: str = "accuracy") -> pd.DataFrame:
    """Rows of results.csv from (model, scenario) -> value of seed 0, 1, ..."""
    rows = [("D", m, seed, s, metric, v, 9) for (m, s), values in cells.items() for seed, v in enumerate(values)]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[report.Report, list[Path]]:
    """One report of three models and three seeds, and its runs."""
    root = tmp_path_factory.mktemp("report")
    runs = [write_run(root, model, seed) for model in ("DyMo", "M3Care", "CMPT_x") for seed in range(3)]
    return report.write_report(runs, root / "report", title="Made <runs>"), runs


class Page(HTMLParser):
    """Every attribute that may load something, and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            (tag, value or "") for name, value in attrs if name in ("src", "href", "srcset", "action", "data")
        ]


def test_mean_and_sd_agree_with_numpy(made):
    result, runs = made
    rows = pd.concat([pd.read_csv(run / "results.csv", keep_default_na=False) for run in runs])
    assert len(result.summary) == len(rows) // 3
    for _, row in result.summary.iterrows():
        values = rows.loc[(rows[KEY] == row[KEY]).all(axis=1), "value"].to_numpy(float)
        np.testing.assert_allclose([row["mean"], row["sd"]], [values.mean(), values.std(ddof=1)], atol=1e-12)
        assert row["n_seeds"] == 3
    assert "none" in set(result.summary["scenario"])  # pandas would read this word as NaN


def test_files_of_a_report(made):
    result, _ = made
    folder = result.html.parent
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"results.csv", "summary.csv", "tests.csv", "summary_accuracy.md", "summary_ece.tex"} <= written
    for stem in ("degradation_accuracy", "scenarios_accuracy"):
        assert {f"figures/{stem}.png", f"figures/{stem}.pdf"} <= written
    assert {"figures/samples_DyMo_random_0.4.png", "figures/rewards_DyMo.png", "figures/training_CMPT_x.png"} <= written
    assert not list(folder.parent.glob(".report*"))  # no draft left
    assert result.tables["PolyMNIST", "iterations"].loc["DyMo", "none"].startswith("1.375")
    assert list(result.tables["PolyMNIST", "accuracy"].columns) == list(SCENARIOS)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "tests.csv"), result.tests, check_dtype=False)


def test_page_and_latex_have_captions_and_csv_files_names(tmp_path):
    scenarios = ("none", "whole_2", "nested_1_0.25")
    runs = [write_run(tmp_path, model, 0, scenarios=scenarios) for model in ("DyMo", "M3Care")]
    (runs[0] / "masks").mkdir()
    (runs[0] / "masks" / "none.json").write_text(json.dumps({"modalities": ["image", "text", "table"]}))
    result = report.write_report(runs, tmp_path / "report", title="t", metrics=["accuracy"])
    page, latex = result.html.read_text(), (tmp_path / "report" / "summary_accuracy.tex").read_text()
    assert '<span title="whole_2">table missing</span>' in page and "text missing in 25 %" in page
    assert r"\label{tab:PolyMNIST_accuracy}" in latex and r"\caption{PolyMNIST, accuracy (\%): mean $\pm$" in latex
    assert r"\shortstack[r]{text missing in\\25 \%}" in latex and r"whole\_2" not in latex
    assert set(pd.read_csv(tmp_path / "report" / "summary.csv", keep_default_na=False)["scenario"]) == set(scenarios)
    assert "whole_2" in (tmp_path / "report" / "summary_accuracy.md").read_text()


def test_html_is_self_contained(made):
    text = made[0].html.read_text()
    page = Page(text)
    assert page.tags.count("img") == len(list((made[0].html.parent / "figures").glob("*.png")))
    assert page.links and all(tag == "img" and value.startswith("data:image/png;base64,") for tag, value in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags) and "@import" not in text and "url(" not in text
    assert "Made &lt;runs&gt;" in text and "&lt;b&gt;see https://example.org" in text  # foreign text stays text
    assert "git_commit" in text and "abc123" in text and f"{2:016x}" in text


def outcomes(runs: list[Path], model: str, scenario: str) -> np.ndarray:
    """(seeds, N) bool, whether a prediction is right, rows in order."""
    files = [np.load(run / "predictions" / f"{scenario}.npz") for run in runs if f"/{model}/" in str(run)]
    return np.stack([(f["logits"].argmax(1) == f["target"])[np.argsort(f["index"])] for f in files])


def test_tests_of_a_report_agree_with_scipy(made, tmp_path):
    result, runs = made
    row = result.tests.set_index(["scenario", "model"]).loc[("random_0.4", "M3Care")]
    # The rows of three seeds are the same 60 test rows: no test counts them thrice.
    assert row["best"] == "DyMo" and row["n_seeds"] == 3 and row["n_rows"] == 60 and row["same_masks"]
    right = [outcomes(runs, model, "random_0.4") for model in ("DyMo", "M3Care")]
    expected = stats.ttest_rel(right[0].mean(axis=1), right[1].mean(axis=1))
    np.testing.assert_allclose([row["t"], row["p_t"]], [expected.statistic, expected.pvalue])
    assert row["unit"] == "row, all seeds together" and np.isnan(row["p_mcnemar"])
    # By the normal approximation: a row's difference is its mean over the seeds.
    differences = (right[0].astype(float) - right[1]).mean(axis=0)
    error = differences.std() / 60**0.5
    assert row["low"] == pytest.approx(row["difference"] - 1.96 * error, abs=0.015)
    assert row["high"] == pytest.approx(row["difference"] + 1.96 * error, abs=0.015)
    assert row["p_bootstrap"] == pytest.approx(2 * stats.norm.sf(row["difference"] / error), abs=0.02)
    one = report.write_report(
        [run for run in runs if run.name == "seed1"], tmp_path / "one", title="t", metrics=["ece"]
    ).tests
    row = one.set_index(["scenario", "model"]).loc[("random_0.4", "M3Care")]
    first, second = (right[0][1] & ~right[1][1]).sum(), (~right[0][1] & right[1][1]).sum()
    assert (row["unit"], row["n_rows"]) == ("row", 60) and np.isnan(row["p_bootstrap"])
    assert (row["best_only_right"], row["model_only_right"]) == (first, second)
    assert row["p_mcnemar"] == pytest.approx(stats.binomtest(int(first), int(first + second)).pvalue)


def test_an_oracle_is_listed_with_its_dagger_and_never_tested(made):
    tests = made[0].tests
    oracles = tests[tests["model"] == "DyMo/oracle_subset†"]
    assert len(oracles) == len(SCENARIOS) and oracles["difference"].notna().all()
    assert oracles[["t", "p_t", "p_mcnemar", "p_bootstrap", "low", "high", "unit"]].isna().all(axis=None)
    assert "DyMo/oracle_subset" not in {*tests["best"], *tests["model"]}
    assert "DyMo/oracle_subset†" in print_table(made[0].summary, "accuracy")


def test_mcnemar_is_of_accuracy_alone(tmp_path):
    """Ranking and decisions disagree: A orders all rows rightly but says class 0 of all, B decides better."""
    target = np.arange(60) % 2
    scores = {"A": np.linspace(-2, -1, 60)[np.argsort(np.argsort(target, kind="stable"))], "B": target - 0.5}
    scores["B"][:6] *= -1
    metrics = {"A": (0.5, 1.0), "B": (0.9, roc_auc_score(target, scores["B"]))}
    runs = []
    for model, score in scores.items():
        runs.append(tmp_path / "D" / model / "default" / "seed0")
        (runs[-1] / "predictions").mkdir(parents=True)
        rows = [("D", model, 0, "none", name, v, 60) for name, v in zip(("accuracy", "auroc"), metrics[model])]
        pd.DataFrame(rows, columns=COLUMNS).to_csv(runs[-1] / "results.csv", index=False)
        arrays = {"index": np.arange(60), "target": target, "missing": np.zeros((60, 2), bool)}
        np.savez(runs[-1] / "predictions" / "none.npz", logits=np.stack([-score / 2, score / 2], 1), **arrays)
        (runs[-1] / "DONE").touch()
    for primary, best in (("accuracy", "B"), ("auroc", "A")):
        (row,) = report.write_report(
            runs, tmp_path / primary, title="t", metrics=[primary], primary=primary
        ).tests.to_dict("records")
        assert row["best"] == best and row["unit"] == "row"
        if primary == "accuracy":
            assert row["p_mcnemar"] == mcnemar(27, 3) and np.isnan(row["p_bootstrap"])
        else:
            assert np.isnan(row["p_mcnemar"]) and row["low"] < row["difference"] < row["high"]
            assert 0 < row["p_bootstrap"] < 0.05


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_resampled_metrics_are_those_of_the_resampled_rows(task, monkeypatch):
    """Against the metrics themselves on repeated rows, with ties, an absent class and unlabelled cells."""
    monkeypatch.setattr(bootstrap, "DRAWS", 6)
    rng = np.random.default_rng(4)
    classes = 2 if task == "binary" else 4
    logits, target = rng.normal(size=(40, classes)).round(1).astype(np.float32), rng.integers(classes - 1, size=40)
    logits += np.arange(classes, dtype=np.float32) / 1024  # no tie within a row
    if task == "binary":
        target = rng.integers(2, size=40)
    if task == "multilabel":
        target = rng.integers(-1, 2, size=(40, classes)).astype(np.float32)
        target[:3] = -1
    counts = np.concatenate(list(bootstrap.row_counts(40)))
    assert counts.shape == (6, 40) and (counts.sum(1) == 40).all()
    for name in metric_names(task):
        values = bootstrap.resampled({"logits": logits, "target": target}, name)
        for value, count in zip(values, counts):
            rows = np.repeat(np.arange(40), count.astype(int))
            metrics = classification_metrics(task, classes, [name])
            metrics.update(torch.from_numpy(logits[rows]), torch.from_numpy(target[rows]))
            assert value == pytest.approx(float(metrics.compute()[name]), abs=1e-5, nan_ok=True), name
    assert bootstrap.resampled({"logits": logits, "target": target}, "accepted_share") is None


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


# Names of scenarios with a rate, without the rate.
FAMILIES = [
    name.rpartition("_")[0] + "_"
    for examples in EXAMPLES.values()
    for name in examples
    if name != "subsets" and (place := parse_scenario(name).place()) and place.axis == MISSING_RATE
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_a_rate_has_a_curve_from_complete_data(family):
    assert scenario_of(f"{family}0.4").named_rate == 0.4
    cells = {("A", "none"): [0.9], ("A", f"{family}0.6"): [0.5], ("A", f"{family}0.4"): [0.7]}
    (axes,) = plots.degradation(summarise(frame_of(cells)), "", style.model_styles(["A"])).axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 0.9], [0.4, 0.7], [0.6, 0.5]])


def test_old_results_take_the_rate_from_masks_then_predictions_then_the_name(tmp_path, caplog):
    run = write_run(tmp_path, "M3Care", 0)
    ((found,), _) = gather([run])
    rates = found.frame.groupby("scenario")["missing_rate"].first()
    arrays = np.load(run / "predictions" / "random_0.4.npz")
    assert rates["random_0.4"] == pytest.approx(arrays["missing"].mean())
    (run / "masks").mkdir()
    np.savez(run / "masks" / "random_0.4.npz", missing=np.eye(3, dtype=bool))
    (run / "predictions" / "random_0.2.npz").unlink()
    (run / "predictions" / "whole_2.npz").unlink()
    ((found,), _) = gather([run])
    rates = found.frame.groupby("scenario")["missing_rate"].first()
    assert rates["random_0.4"] == pytest.approx(1 / 3) and rates["random_0.2"] == 0.2 and np.isnan(rates["whole_2"])
    assert "no mask of 'random_0.2'" in caplog.text


@pytest.mark.parametrize("models", [["DyMo"], ["M3Care"], ["M3Care", "CMPT_x"]])
@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("scenarios", [["none"], ["random_0.4"], ["none", "random_0.4"]])
def test_every_combination_of_models_seeds_and_scenarios_makes_a_report(
    tmp_path, monkeypatch, models, seeds, scenarios
):
    def write_nothing(figure: Figure, path: Path, pdf: bool = False) -> None:  # drawing is slow
        path.parent.mkdir(exist_ok=True)
        path.touch()

    monkeypatch.setattr(report_figures, "save", write_nothing)
    runs = [write_run(tmp_path, model, seed, scenarios=scenarios, n=12) for model in models for seed in range(seeds)]
    result = report.write_report(runs, tmp_path / "report", title="t")
    assert {"accuracy", "auroc", "ece"} <= {metric for _, metric in result.tables}
    assert "missing rate" in result.html.read_text() and print_table(result.summary, "accuracy")
    assert len(result.tests) == len(scenarios) * (2 if models == ["DyMo"] else len(models) - 1)


def test_mcnemar_by_hand():
    # 1 against 5 of 6 disagreements: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(14 / 64)
    assert mcnemar(3, 3) == 1 and mcnemar(0, 0) == 1


def test_paired_t_by_hand():
    # Differences 1, 2, 3: mean 2, SD 1, t = 2 / (1 / sqrt 3); two degrees of freedom: p = 1 - t / sqrt(t^2 + 2).
    t, p = paired_t(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert t == pytest.approx(12**0.5) and p == pytest.approx(1 - (12 / 14) ** 0.5)
    a = np.array([0.9, 0.8, 0.7])
    assert paired_t(a, a) == (0.0, 1.0)
    t, p = paired_t(a, a - 0.1)  # differences equal up to rounding
    assert t == np.inf and np.isnan(p)
    assert np.isnan(paired_t(a[:1], a[:1])).all()


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


@pytest.mark.parametrize(("metric", "best"), [("ece", "A"), ("auroc", "B"), ("accepted_share", None), ("loss", None)])
def test_better_side_of_each_metric(metric, best):
    summary = summarise(frame_of({("A", "s"): [0.1], ("B", "s"): [0.2]}, metric))
    shown = table(summary, metric)["s"]
    assert shown.index[shown.str.endswith("*")].tolist() == [best] * (best is not None)
    assert shown["A"].startswith("0.1" if metric == "loss" else "10.00")


def test_latex_escapes_and_markdown_pipes():
    summary = summarise(frame_of({("DyMo_aware/oracle_x", "random_0.4"): [0.5, 0.7], ("a|b&c", "none"): [0.5]}))
    latex = to_latex(table(summary, "accuracy", "latex"))
    assert r"DyMo\_aware/oracle\_x$^\dagger$" in latex and r"random\_0.4" in latex and r"a|b\&c" in latex
    assert r"60.00 $\pm$ 14.14" in latex and "±" not in latex and "–" not in latex
    assert r"a\|b&c" in to_markdown(table(summary, "accuracy", "markdown"))


def test_unfinished_runs_are_skipped_and_none_is_an_error(tmp_path, caplog):
    runs = [write_run(tmp_path, "M3Care", seed) for seed in range(2)]
    (runs[1] / "DONE").unlink()
    result = report.write_report([*runs, tmp_path / "nowhere"], tmp_path / "report", title="t", metrics=["ece"])
    assert "seed1: no DONE" in caplog.text and "nowhere: no such folder" in caplog.text
    assert result.summary["n_seeds"].eq(1).all() and "seed1: no DONE" in result.html.read_text()
    assert list(result.tables) == [("PolyMNIST", "ece")] and "±" not in result.tables["PolyMNIST", "ece"].to_string()
    with pytest.raises(UserError, match=r"seed1.*stages=\[test\]"):
        report.write_report(runs[1:], tmp_path / "other", title="t")
    with pytest.raises(UserError, match="an empty list"):
        report.write_report([], tmp_path / "other", title="t")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "No columns"),
        ("dataset,model\nD,A\n", "no column seed"),
        (",".join(COLUMNS) + "\n", "no rows"),
        (",".join(COLUMNS) + "\nD,A,0,none,accuracy,high,9\n", "high"),
        (",".join(COLUMNS) + "\nD,A,x,none,accuracy,0.5,9\n", "x"),
        (",".join(COLUMNS) + "\n" + 2 * "D,A,0,none,accuracy,0.5,9\n", "twice D, A, none, accuracy"),
    ],
)
def test_broken_results_are_named(tmp_path, content, reason):
    run = write_run(tmp_path, "M3Care", 0)
    (run / "results.csv").write_text(content)
    with pytest.raises(UserError, match=rf"seed0/results\.csv.*{reason}.*stages=\[test\]"):
        report.write_report([run], tmp_path / "report", title="t")
    assert not (tmp_path / "report").exists()


def test_broken_predictions_are_named_and_leave_the_old_report(tmp_path):
    run = write_run(tmp_path, "M3Care", 0)
    before = report.write_report([run], tmp_path / "report", title="before", metrics=["ece"]).html.read_text()
    (run / "predictions" / "none.npz").write_bytes(b"no zip file")
    with pytest.raises(UserError, match=r"none\.npz cannot be read"):
        report.write_report([run], tmp_path / "report", title="after", metrics=["ece"])
    assert (tmp_path / "report" / "report.html").read_text() == before
    assert not list(tmp_path.glob(".report*"))


def test_output_folder_is_replaced_only_if_it_is_a_report(tmp_path):
    run = write_run(tmp_path / "runs", "M3Care", 0)
    with pytest.raises(UserError, match="holds runs"):
        report.write_report([run], tmp_path / "runs", title="t")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(UserError, match="something else"):
        report.write_report([run], tmp_path / "thesis", title="t")
    for title in ("first", "second"):
        page = report.write_report([run, run], tmp_path / "report", title=title, metrics=["accuracy"]).html
        (page.parent / title).touch()
    assert (page.parent / "second").exists() and not (page.parent / "first").exists()
    with pytest.raises(UserError, match="no run has the metric 'mcc': choose from accuracy"):
        report.write_report([run], tmp_path / "report", title="t", primary="mcc")


def test_names_are_told_apart_and_the_same_rows_refused(tmp_path):
    runs = [write_run(tmp_path / "a", "DyMo", 0, name=name) for name in ("default", "small")]
    found, _ = gather(runs)
    assert [run.model for run in found] == ["DyMo [default]", "DyMo [small]"]
    assert set(found[1].frame["model"]) == {"DyMo [small]" + c for c in ("", "/discard", "/oracle_subset")}
    assert all(run.predictions(m, "none").is_file() for run in found for m in run.frame["model"])
    copy = write_run(tmp_path / "b", "DyMo", 0, name="small")
    with pytest.raises(UserError, match="both hold PolyMNIST, DyMo"):
        gather([runs[1], copy])


def test_runs_with_and_without_a_fold_have_no_common_mean(tmp_path):
    whole, of_fold = (write_run(tmp_path / str(seed), "DyMo", seed) for seed in (0, 1))
    frame = pd.read_csv(of_fold / "results.csv")
    frame.assign(fold=1).to_csv(of_fold / "results.csv", index=False)
    with pytest.raises(UserError, match=r"PolyMNIST, DyMo: .*seed1 is of a fold and .*seed0 is not") as error:
        gather([whole, of_fold])
    assert "\n" not in str(error.value)
    assert len(gather([of_fold])[0]) == 1


def test_runs_without_extras_and_with_several_data_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(report_figures, "PICTURED", 1)
    runs = [write_run(tmp_path, "DyMo", 0, dataset=dataset) for dataset in ("PolyMNIST", "MST")]
    for file in ("environment.json", "config.yaml", "metrics.csv"):
        (runs[0] / file).unlink()
    for file in (runs[0] / "predictions").rglob("*.npz"):
        file.unlink()
    result = report.write_report(runs, tmp_path / "report", title="t", metrics=["accuracy"])
    by_dataset = result.tests.groupby("dataset")["n_rows"].max()
    assert by_dataset["PolyMNIST"] == 0 and by_dataset["MST"] == 60
    assert (tmp_path / "report" / "figures" / "samples_MST_DyMo_none.png").is_file()
    assert "no config.yaml" in result.html.read_text() and len(result.tables) == 2


def test_masks_that_differ_are_reported(tmp_path, caplog):
    runs = [write_run(tmp_path, model, 0) for model in ("DyMo", "M3Care")]
    file = runs[1] / "predictions" / "none.npz"
    arrays = dict(np.load(file))
    np.savez(file, **arrays | {"missing": ~arrays["missing"]})
    tests = compare(gather(runs)[0], pd.concat(r.frame for r in gather(runs)[0]), "accuracy")
    assert tests.loc[tests["model"] == "M3Care", "same_masks"].tolist() == [False] + [True] * (len(SCENARIOS) - 1)
    assert "different masks for PolyMNIST, none" in caplog.text


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
    alone, both = plots.degradation(summary, "accuracy", styles, NOISE_LEVEL).axes
    np.testing.assert_allclose(alone.lines[0].get_xydata(), [[1, 0.85], [4, 0.55], [10, 0.3]])
    np.testing.assert_allclose(both.lines[0].get_xydata(), [[1, 0.7], [4, 0.4]])
    assert both.get_title().split("\n") == ["D, Gaussian noise on all modalities, 60 % of", "modalities"]
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
