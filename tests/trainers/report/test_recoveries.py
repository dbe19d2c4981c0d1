"""The quality of recoveries as results, from quality.csv of imputers."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.report.recoveries import main
from trainers.report.runs import read_results
from trainers.report.tables import rows_of_metric, summarise
from utils.errors import UserError


def imputer(root: Path, seed: int, rows: str) -> Path:
    run = root / "Digits" / "imputer_MoPoE" / "default" / f"seed{seed}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"seed: {seed}\ndataset: {{name: Digits}}\nimputer: {{name: MoPoE}}\n")
    (run / "quality.csv").write_text("modality,observed,metric,value,n\n" + rows)
    return run


def test_means_are_over_samples_and_seeds(tmp_path: Path) -> None:
    runs = [
        imputer(tmp_path, 0, "a,1,coherence,0.5,30\nb,1,coherence,0.9,10\na,2,coherence,1.0,5\n"),
        imputer(tmp_path, 1, "a,1,coherence,0.7,20\nb,1,coherence,0.3,20\na,2,coherence,0.8,5\n"),
    ]
    main([str(tmp_path / "out.csv"), *map(str, runs)])
    rows = rows_of_metric(summarise(read_results(tmp_path / "out.csv")), "coherence").set_index(["model", "scenario"])
    # All views: (0.5 * 30 + 0.9 * 10) / 40 = 0.6 and 0.5; in percent.
    assert rows.loc[("MoPoE", "1"), "mean"] == pytest.approx(55) and rows.loc[("MoPoE", "2"), "mean"] == pytest.approx(
        90
    )
    assert rows.loc[("MoPoE", "1"), "sd"] == pytest.approx(10 / 2**0.5)
    assert rows.loc[("MoPoE/a", "1"), "mean"] == pytest.approx(60) and rows.loc[
        ("MoPoE/b", "1"), "mean"
    ] == pytest.approx(60)
    assert (rows["n_seeds"] == 2).all() and len(rows) == 5


def test_a_run_without_quality_is_named(tmp_path: Path) -> None:
    run = imputer(tmp_path, 0, "a,1,coherence,0.5,30\n")
    (run / "quality.csv").unlink()
    with pytest.raises(UserError, match=r"seed0 has no quality.csv: give run directories of imputers"):
        main([str(tmp_path / "out.csv"), str(run)])
