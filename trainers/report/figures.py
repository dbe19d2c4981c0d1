"""Figures of a report."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from datasets.missingness.base import slug
from trainers.report import plots as plotting
from trainers.report.runs import KEY, REPEAT, Run, load_arrays
from trainers.report.statistics import is_right
from trainers.report.tables import _shown, label

log = logging.getLogger(__name__)
PICTURED = 6  # scenarios of one model that get pictures and histograms


def training_sweep(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods trained under several missingness scenarios and tested on complete data, as a frame whose ``scenario`` is
    the one of training; empty where there are no several, or a method has two runs of one."""
    rows = frame[frame["scenario"] == "none"]
    rows = rows.assign(model=rows["method"], scenario=rows["train"])
    rows = rows.drop(columns="missing_rate", errors="ignore")  # that of the test
    several = rows["train"].nunique() > 1 and not rows.duplicated([*KEY, *REPEAT]).any()
    return rows.sort_values("train", key=lambda train: train != "none", kind="stable") if several else rows[:0]


def _draw(
    runs: Sequence[Run], summary: pd.DataFrame, sweep: pd.DataFrame, metrics: Sequence[str], folder: Path
) -> dict[str, list[Path]]:
    """Draw everything; section of the page -> its PNG files.

    Args:
        sweep: the summary of :func:`training_sweep`; with it, curves over test rates are those of complete training.
    """
    partial = functools.partial
    jobs: list[tuple[str, str, Callable[[], Figure | None]]] = []
    styles = plotting.model_styles(list((sweep if len(sweep) else summary)["model"].unique()))
    degradation = partial(plotting.degradation, modalities=_modalities(runs))
    if len(sweep):
        by_training = partial(degradation, xlabel="missing rate in training")
        jobs = [
            ("sweep", f"sweep_{slug(m)}", partial(by_training, _shown(sweep, m), label(m), styles)) for m in metrics
        ]
    by_test = partial(degradation, whole=_rate_one(runs))
    for metric in metrics:
        for name, draw in (
            ("degradation", by_test),
            ("noise", plotting.noise_levels),
            ("scenarios", plotting.scenario_bars),
        ):
            arguments = (_shown(summary, metric), label(metric), styles)
            jobs.append((metric, f"{name}_{slug(metric)}", partial(draw, *arguments)))
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.fold)):
        groups.setdefault((run.dataset, run.model), []).append(run)
    several = summary["dataset"].nunique() > 1
    for (dataset, model), group in groups.items():
        stem, title = slug(f"{dataset}_{model}" if several else model), f"{dataset}, {model}"
        scenarios = list(dict.fromkeys(s for run in group for s in run.frame["scenario"]))
        examples = [(s, f) for s in scenarios if (f := group[0].path / "examples" / f"{slug(s)}.npz").is_file()]
        if len(examples) > PICTURED:
            log.info("report: pictures of the first %d of %d scenarios of %s", PICTURED, len(examples), title)
        for scenario, file in examples[:PICTURED]:
            heading = f"{title}, {scenario}, {group[0].repeat}"
            jobs.append(("samples", f"samples_{stem}_{slug(scenario)}", partial(_samples, file, heading)))
        jobs.append(("rewards", f"rewards_{stem}", partial(_rewards, group, model, scenarios, title)))
        logs = {run.repeat: f for run in group if (f := run.path / "metrics.csv").is_file() and f.stat().st_size > 1}
        curves = {repeat: pd.read_csv(file) for repeat, file in logs.items()}
        jobs.append(("training", f"training_{stem}", partial(plotting.training_curves, curves, title)))
    drawn: dict[str, list[Path]] = {}
    for section, name, job in tqdm(jobs, desc="report: figures", disable=None, leave=False):
        if figure := job():
            plotting.save(figure, folder / f"{name}.png", pdf=section in metrics)
            drawn.setdefault(section, []).append(folder / f"{name}.png")
    return drawn


def _rate_one(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """(data set, family of rates) -> the scenario that hides in all rows what the family hides in some."""
    found = {}
    for run in runs:
        for family in ("image_text_text_", "image_text_image_"):
            rates = [s for s in run.frame["scenario"].unique() if s.startswith(family)]
            file = run.predictions(run.model, max(rates, default=""))
            if rates and file.is_file() and (run.dataset, family) not in found:
                # The data may lack some of the other modality besides.
                hidden = load_arrays(file, "missing")["missing"].mean(0).argmax()
                found[run.dataset, family] = f"whole_{hidden}"
    return found


def _modalities(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Data set -> the names of its modalities, by the masks of a run; runs from before masks had them say nothing."""
    found: dict[str, list[str]] = {}
    for run in runs:
        file = next((run.path / "masks").glob("*.json"), None)
        if file is None or run.dataset in found:
            continue
        if names := json.loads(file.read_text()).get("modalities"):
            found[run.dataset] = names
    return found


def _samples(file: Path, title: str) -> Figure:
    return plotting.samples(load_arrays(file), title)


def _rewards(runs: Sequence[Run], model: str, scenarios: Sequence[str], title: str) -> Figure | None:
    """Histograms of the rewards of a selecting model, pooled over its seeds; None for other models."""
    panels: dict[str, tuple[np.ndarray, ...]] = {}
    for scenario in scenarios:
        parts = []
        for file in (f for run in runs if len(panels) < PICTURED and (f := run.predictions(model, scenario)).is_file()):
            data = load_arrays(file, "rewards", "accepted", "logits", "target")
            if np.isfinite(data.get("rewards", np.nan)).any():
                parts.append(
                    (
                        *plotting.last_rewards(data["rewards"], data["accepted"]),
                        is_right(data["logits"], data["target"]),
                    )
                )
        if parts:
            panels[scenario] = tuple(np.concatenate(part) for part in zip(*parts))
    return plotting.reward_histograms(panels, title) if panels else None
