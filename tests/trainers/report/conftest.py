"""Fixture of a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainers.report.runs import write_run
from trainers.report import page as report


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[report.Report, list[Path]]:
    """One report of three models and three seeds, and its runs.

    Of the session: tests of other folders may come between two files of this one.
    """
    root = tmp_path_factory.mktemp("report")
    runs = [write_run(root, model, seed) for model in ("DyMo", "M3Care", "CMPT_x") for seed in range(3)]
    return report.write_report(runs, root / "report", title="Made <runs>"), runs
