"""Runs of a report, and everything that is computed from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from trainers.report.costs import cost_table
from trainers.report.directions import check_primary
from trainers.report.figures import training_sweep
from trainers.report.grid_tables import train_test_matrices
from trainers.report.measure_tables import Measure, measures_of, pattern_table
from trainers.report.ranks import Ranks, compare_ranks
from trainers.report.runs import FinishedRun, gather, modality_names
from trainers.report.statistics import compare
from trainers.report.tables import captions_of, summarise
from trainers.report.verification import verify_results
from utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """Runs of a report, and everything that is computed from them.

    Attributes:
        skipped: run directories that are left out, with the reason.
        frame: all results.
        metrics: metrics with tables and charts on the page, ``primary`` first.
        drawn_metrics: those with figures for papers, which take most of the time of a report: the metrics that were
            asked for, else ``primary`` alone.
        names: data set -> names of its modalities.
        sweep: summary by missing data in training; empty without such runs.
        matrices: (data set, method) -> scores by training and test scenario.
        patterns: scores per pattern of missing modalities.
        tests: paired tests of ``primary``.
        costs: of the models, see :func:`trainers.report.costs.cost_table`.
    """

    runs: Sequence[FinishedRun]
    skipped: Sequence[str]
    frame: pd.DataFrame
    metrics: Sequence[str]
    drawn_metrics: Sequence[str]
    primary: str
    names: Mapping[str, Sequence[str]]
    summary: pd.DataFrame
    sweep: pd.DataFrame
    matrices: dict[tuple[str, str], pd.DataFrame]
    measures: Sequence[Measure]
    patterns: pd.DataFrame
    tests: pd.DataFrame
    ranks: Ranks | None
    costs: pd.DataFrame

    @property
    def captions(self) -> dict[str, dict[str, str]]:
        """Data set -> scenario -> caption, of the scenarios of the test."""
        parts = self.summary.groupby("dataset", sort=False)
        return {str(dataset): captions_of(part, self.names.get(str(dataset), ())) for dataset, part in parts}


def content_of(run_dirs: Sequence[Path], output: Path, metrics: Sequence[str] | None, primary: str) -> Content:
    """Read the runs and compute everything that the report shows.

    Raises:
        UserError: see :func:`trainers.report.page.write_report`.
    """
    runs, skipped = gather(run_dirs)
    verify_results(runs)
    frame = pd.concat([run.frame for run in runs], ignore_index=True)
    present = list(frame["metric"].unique())
    if unknown := [m for m in (primary, *(metrics or ())) if m not in present]:
        raise UserError(f"no run has the metric '{unknown[0]}': choose from {', '.join(present)}")
    check_primary(frame, primary)
    asked = metrics
    metrics = sorted(dict.fromkeys(metrics or present), key=lambda m: m != primary)
    noun = "run" if len(runs) == 1 else "runs"
    log.info("report: %d %s, %s, into %s", len(runs), noun, ", ".join(metrics), output)
    names = modality_names(runs)
    return Content(
        runs=runs,
        skipped=skipped,
        frame=frame,
        metrics=metrics,
        drawn_metrics=metrics if asked else [primary],
        primary=primary,
        names=names,
        summary=summarise(frame),
        sweep=summarise(training_sweep(frame)),
        matrices=train_test_matrices(frame),
        measures=measures_of(runs, frame, primary, names),
        patterns=pattern_table(runs, names),
        tests=compare(runs, frame, primary),
        ranks=compare_ranks(frame, primary),
        costs=cost_table(runs),
    )
