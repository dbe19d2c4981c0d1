"""Stored results that pages of the documentation are written from."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from trainers.report.evidence import MANIFEST, stored_runs, studies
from trainers.report.runs import FinishedRun, read_results
from trainers.report.tables import summarise
from utils.errors import UserError


@dataclass
class Source:
    """Attributes:
    name: a study, or a CSV file.
    frame: results per run; empty if only their means are stored.
    summary: of :func:`trainers.report.tables.summarise`.
    runs: those of a study, with predicted classes.
    tests: comparisons that were computed.
    """

    name: str
    frame: pd.DataFrame
    summary: pd.DataFrame
    runs: list[FinishedRun] = field(default_factory=list)
    tests: dict[tuple[object, ...], pd.DataFrame] = field(default_factory=dict)


class Sources:
    """Reads sources once.

    Args:
        results: folder of the studies and CSV files.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self._read: dict[str, Source] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def has_runs(self, name: str) -> bool:
        """Whether the source is a study."""
        return not name.endswith(".csv")

    def link(self, name: str) -> Path:
        """File that lists what is stored."""
        return self.results / name / MANIFEST if self.has_runs(name) else self.results / name

    def __getitem__(self, name: str) -> Source:
        """
        Raises:
            UserError: no such source, or one that is broken.
        """
        if name not in self._read:
            self._read[name] = self._study(name) if self.has_runs(name) else self._file(name)
        return self._read[name]

    def _study(self, name: str) -> Source:
        if not (self.results / name).is_dir():
            known = ", ".join(studies(self.results)) or "none"
            raise UserError(f"no study '{name}' in {self.results} (there are: {known}): store its runs")
        runs = self._stack.enter_context(stored_runs(self.results / name))
        frame = pd.concat([run.frame for run in runs], ignore_index=True)
        return Source(name, frame, summarise(frame), runs)

    def _file(self, name: str) -> Source:
        file = self.results / name
        if not file.is_file():
            raise UserError(f"no file {file}: restore it with git")
        head = pd.read_csv(file, nrows=0)
        if "value" in head:
            frame = read_results(file)
            return Source(name, frame, summarise(frame))
        summary = pd.read_csv(file, keep_default_na=False)
        if absent := {"dataset", "model", "scenario", "metric", "mean", "sd", "n_seeds"} - set(summary):
            raise UserError(f"{file} has no column {', '.join(sorted(absent))}: it holds neither results nor a summary")
        mean, sd = (pd.to_numeric(summary[column]) for column in ("mean", "sd"))
        return Source(name, pd.DataFrame(), summary.assign(mean=mean, sd=sd, error=sd, n_folds=0))
