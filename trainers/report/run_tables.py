"""Environments and configurations of the runs: what all share, and what differs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from trainers.report.runs import FinishedRun

MANY = 6  # models that a row of the table of differences names


@dataclass(frozen=True)
class RunGroup:
    """Runs of one model.

    Attributes:
        config: configuration of the first, as text.
        differences: run -> lines ``key: value`` in which its configuration differs from the first.
    """

    title: str
    config: str
    differences: Mapping[str, Sequence[str]]


def run_title(run: FinishedRun) -> str:
    """Data set, model, seed and fold."""
    return f"{run.dataset}, {run.model}, {run.repeat}"


def environment_tables(runs: Sequence[FinishedRun]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Entries of environment.json that all runs share, and entries that differ; costs have a section of their own."""
    entries = [{key: value for key, value in run.environment.items() if key != "cost"} for run in runs]
    frame = pd.json_normalize(entries).astype(object).map(lambda v: "–" if v is None or v != v else str(v))
    shared = [column for column in frame if frame[column].nunique() == 1]
    common = pd.DataFrame({"entry": shared, "the same in all runs": [frame[c].iloc[0] for c in shared]})
    frame.insert(0, "run", [run_title(run) for run in runs])
    return common, frame.drop(columns=shared)


def flattened(config: Any, prefix: str = "") -> dict[str, str]:
    """Configuration key with dots -> value as text; lists are values."""
    if not isinstance(config, Mapping) or not config:
        return {prefix: json.dumps(config, default=str, ensure_ascii=False)}
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _configurations(runs: Sequence[FinishedRun]) -> list[dict[str, str]]:
    return [flattened(config) if (config := run.config) else {} for run in runs]


def setting_differences(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """Settings that have several values among the runs that have them, a row per value, the most frequent first.

    Returns:
        columns setting, value, runs (number), which (models; with their seeds where only some have the value).
    """
    totals = Counter((run.dataset, run.model) for run in runs)
    values: dict[str, dict[str, list[FinishedRun]]] = {}
    for run, config in zip(runs, _configurations(runs)):
        for key, value in config.items():
            values.setdefault(key, {}).setdefault(value, []).append(run)
    rows = [
        (key, value, len(members), _which(members, totals))
        for key, by_value in values.items()
        if len(by_value) > 1 and key != "seed"
        for value, members in sorted(by_value.items(), key=lambda item: -len(item[1]))
    ]
    return pd.DataFrame(rows, columns=["setting", "value", "runs", "which"])


def _which(runs: Sequence[FinishedRun], totals: Mapping[tuple[str, str], int]) -> str:
    repeats: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        repeats.setdefault((run.dataset, run.model), []).append(run.repeat)
    texts = [
        ", ".join(key) + (f" ({', '.join(names)})" if len(names) < totals[key] else "")
        for key, names in repeats.items()
    ]
    return "; ".join(texts[:MANY]) + (f"; {len(texts) - MANY} more" if len(texts) > MANY else "")


def run_groups(runs: Sequence[FinishedRun]) -> list[RunGroup]:
    """The configuration of each model once, and what differs in its further runs."""
    members: dict[str, list[tuple[FinishedRun, dict[str, str]]]] = {}
    for run, config in zip(runs, _configurations(runs)):
        members.setdefault(f"{run.dataset}, {run.model}", []).append((run, config))
    groups = []
    for title, pairs in members.items():
        first = pairs[0][1]
        differences = {
            f"{run.repeat} ({run.path})": [
                f"{key}: {config.get(key, 'not set')}"
                for key in {**first, **config}
                if config.get(key) != first.get(key)
            ]
            for run, config in pairs
        }
        groups.append(RunGroup(title, pairs[0][0].text("config.yaml") or "no config.yaml", differences))
    return groups
