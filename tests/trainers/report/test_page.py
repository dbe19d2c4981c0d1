"""Stage report: files, page, folders, refusals."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from tests.trainers.report.runs import SCENARIOS, write_run
from trainers.report import figures as report_figures
from trainers.report import page as report
from trainers.report.runs import COLUMNS
from trainers.report.tables import print_table
from utils.errors import UserError


def test_files_of_a_report(made):
    result, _ = made
    folder = result.html.parent
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {
        "results.csv",
        "summary.csv",
        "tests.csv",
        "ranks.csv",
        "figures/ranks_accuracy.png",
        "summary_accuracy.md",
        "summary_ece.tex",
    } <= written
    for stem in ("degradation_accuracy", "scenarios_accuracy"):
        assert {f"figures/{stem}.png", f"figures/{stem}.pdf"} <= written
    assert not any("degradation_ece" in file for file in written)  # no metrics were asked for
    assert {"figures/samples_DyMo_random_0.4.png", "figures/rewards_DyMo.png", "figures/training_CMPT_x.png"} <= written
    assert not list(folder.parent.glob(".*"))  # no draft left
    assert result.tables["PolyMNIST", "iterations"].loc["DyMo", "none"].startswith("1.375")
    assert list(result.tables["PolyMNIST", "accuracy"].columns) == list(SCENARIOS)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "tests.csv"), result.tests, check_dtype=False)


@pytest.mark.usefixtures("undrawn")
def test_page_and_latex_have_captions_and_csv_files_names(tmp_path):
    scenarios = ("none", "whole_2", "nested_1_0.25")
    runs = [write_run(tmp_path, model, 0, scenarios=scenarios) for model in ("DyMo", "M3Care")]
    (runs[0] / "masks").mkdir()
    (runs[0] / "masks" / "none.json").write_text(json.dumps({"modalities": ["image", "text", "table"]}))
    result = report.write_report(runs, tmp_path / "report", title="t", metrics=["accuracy", "ece"])
    assert (tmp_path / "report" / "figures" / "scenarios_ece.pdf").is_file()
    page, latex = result.html.read_text(), (tmp_path / "report" / "summary_accuracy.tex").read_text()
    assert ' data-scenario="whole_2">table missing</th>' in page and "text missing in 25 %" in page
    assert r"\label{tab:PolyMNIST_accuracy}" in latex and r"\caption{PolyMNIST, accuracy (\%): mean $\pm$" in latex
    assert r"\shortstack[r]{text missing in\\25 \%}" in latex and r"whole\_2" not in latex
    assert set(pd.read_csv(tmp_path / "report" / "summary.csv", keep_default_na=False)["scenario"]) == set(scenarios)
    assert "whole_2" in (tmp_path / "report" / "summary_accuracy.md").read_text()


@pytest.mark.parametrize("models", [["DyMo"], ["M3Care"], ["M3Care", "CMPT_x"]])
@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("scenarios", [["none"], ["random_0.4"], ["none", "random_0.4"]])
@pytest.mark.usefixtures("undrawn")
def test_every_combination_of_models_seeds_and_scenarios_makes_a_report(tmp_path, models, seeds, scenarios):
    runs = [write_run(tmp_path, model, seed, scenarios=scenarios, n=12) for model in models for seed in range(seeds)]
    result = report.write_report(runs, tmp_path / "report", title="t")
    assert {"accuracy", "auroc", "ece"} <= {metric for _, metric in result.tables}
    assert "missing rate" in result.html.read_text() and print_table(result.summary, "accuracy")
    assert len(result.tests) == len(scenarios) * (2 if models == ["DyMo"] else len(models) - 1)


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_broken_predictions_are_named_and_leave_the_old_report(tmp_path):
    run = write_run(tmp_path, "M3Care", 0)
    before = report.write_report([run], tmp_path / "report", title="before", metrics=["ece"]).html.read_text()
    (run / "predictions" / "none.npz").write_bytes(b"no zip file")
    with pytest.raises(UserError, match=r"none\.npz cannot be read"):
        report.write_report([run], tmp_path / "report", title="after", metrics=["ece"])
    assert (tmp_path / "report" / "report.html").read_text() == before
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
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
