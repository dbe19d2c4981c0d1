"""The benchmarks run, and what they compare agrees."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from datasets.multi_feature_digits import VIEWS
from tests.benchmarks import cmpt, decoding, growth, methods
from tests.benchmarks.__main__ import main
from tests.benchmarks.methods import multiply_adds
from trainers.report.runs import read_results
from utils.errors import UserError


def test_benchmarks_run_in_a_tiny_setting(tmp_path: Path) -> None:
    small = ["dataset.train_pairings=1", f"paths.data={tmp_path}", f"paths.output={tmp_path}"]
    table = main(["--tiny", "--out", str(tmp_path / "table.csv"), *small])
    assert (tmp_path / "table.csv").exists()
    selection = table[table.what.str.startswith("selection")]
    assert list(selection.rate) == [0.2, 0.4, 0.6, 0.8]
    assert all(", 0 other masks," in text for text in selection.agreement)
    differences = selection.agreement.str.extract(r"difference (\S+)$")[0].astype(float)
    assert (differences < 1e-4).all()
    assert {"Gaussian stage, tensors given", "Gaussian stage, data path included", "training"} <= set(table.what)


def test_multiply_adds_are_those_of_the_formula() -> None:
    layer, x = torch.nn.Linear(3, 5), torch.randn(7, 3)
    assert multiply_adds(lambda: layer(x)) == 7 * 3 * 5
    # Backward of a linear map: one product for the weight, one for the input.
    assert multiply_adds(lambda: layer(x.requires_grad_()).sum().backward()) == 3 * 7 * 3 * 5


def test_costs_of_methods_in_a_tiny_setting(tmp_path: Path) -> None:
    paths = [f"paths.data={tmp_path}", f"paths.output={tmp_path}", "dataset.demo=true"]
    models = "DyMo,ModDrop,Multimodal_CONCAT,LogitAverage,QMF,DynMM"
    table = methods.main(
        ["--tiny", "--models", models, "--out", str(tmp_path / "c.csv"), "dataset=MultiFeatureDigits", *paths]
    ).set_index("model")
    assert list(table.index) == models.split(",") and (table > 0).all(axis=None)
    # Two layers to 128 and 64 units a view, and a head on each of the six vectors.
    features = list(VIEWS.values())
    encoders = sum(128 * (f + 64) for f in features)
    assert table.multiply_adds_complete["LogitAverage"] == encoders + 6 * 64 * 10
    assert table.parameters["QMF"] == encoders + 6 * (128 + 64) + 6 * (64 + 1) * 10
    # A network of its own for each view, each trained as long as the others; DyMo's imputer is trained too.
    epochs = table.epochs["QMF"]
    assert table.epochs["LogitAverage"] == 6 * epochs + 1 and table.epochs["DyMo"] > epochs
    # Six views, their concatenation, the gate; the imputer once, though the concatenation would use it as well.
    assert table.epochs["DynMM"] == 8 * epochs + table.epochs["DyMo"] - epochs
    whole = table.whole_training_multiply_adds
    # Backward of the first layer needs no gradient of its input.
    parts = epochs * (3 * (encoders + 6 * 64 * 10) - 128 * sum(features))
    assert whole["LogitAverage"] == parts + table.training_multiply_adds["LogitAverage"]
    assert whole["QMF"] == epochs * table.training_multiply_adds["QMF"]
    assert whole["DyMo"] > epochs * table.training_multiply_adds["DyMo"]
    # Recoveries and candidates cost what a plain transformer does not need.
    assert table.multiply_adds_incomplete["DyMo"] > 1.5 * table.multiply_adds_incomplete["ModDrop"]


def test_ways_of_cmpt_in_a_tiny_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = cmpt.main(["--small", "--batch=2", "--rows=3", "--repeats=1", "--out", str(tmp_path / "c.csv")])
    assert len(table) == 8 and (table.samples_per_second > 0).all()
    stored = read_results(tmp_path / "c.csv").set_index(["model", "scenario", "metric"])["value"]
    way = table[(table.what == "prediction") & (table.precision == "bf16") & (table.how == "adapters merged")]
    assert stored["prediction_bf16", "adapters_merged", "peak_mib"] == way["peak_mib"].item()
    assert len(stored) == 3 * 8
    assert (
        table.times_float32[table.how.isin(["plain", "adapters beside"]) & (table.precision == "float32")].eq(1).all()
    )
    difference = float(re.search(r"differ by at most (\S+)", capsys.readouterr().out)[1])  # type: ignore[index]
    assert 0 < difference < 1e-4


def test_growth_runs_in_a_tiny_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "growth.csv", tmp_path / "growth.png"]
    table = growth.main(["--tiny", "runs", "--out", str(files[0]), "--figure", str(files[1])])
    assert table["size"].tolist() == [2, 4] and (table["cpu_seconds"] > 0).all()
    assert all(file.exists() for file in files) and "report" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown part row: known are rows, modalities"):
        growth.main(["row"])


def test_the_page_on_scale_shows_the_stored_measurement() -> None:
    root = Path(__file__).parents[2]
    assert growth.page_table(pd.read_csv(root / "docs/results/growth.csv")) in (root / "docs/scale.md").read_text()


def test_slopes_are_those_of_the_two_largest_sizes() -> None:
    sizes = [10, 1000, 100]
    points = [{"part": "rows", "size": n, "stage": "fit", "cpu_seconds": 1e-3 * n**1.5, "peak_mib": 7.0} for n in sizes]
    (line,) = growth.slopes(pd.DataFrame(points)).to_dict("records")
    assert (line["from"], line["to"]) == (100, 1000)
    assert line["cpu_seconds"] == pytest.approx(1.5) and line["peak_mib"] == pytest.approx(0)


def test_ways_to_decode_in_a_tiny_setting(tmp_path: Path) -> None:
    table = decoding.main(["--number=2", "--out", str(tmp_path / "d.csv")])
    assert list(table.way[:5]) == list(decoding.WAYS) and (table.cpu_ms[:5] > 0).all()
    assert len(pd.read_csv(tmp_path / "d.csv")) == len(table)
    root = Path(__file__).parents[2]
    stored = pd.read_csv(root / "docs/results/decoding.csv")
    assert decoding.page_table(stored) in (root / "docs/performance.md").read_text()
