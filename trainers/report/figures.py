"""All figures of a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from datasets.missingness.base import NOISE_LEVEL, slug
from datasets.missingness.image_text import ImageText
from trainers.report import distributions, pictures, plots
from trainers.report.outcomes import Job, outcome_jobs
from trainers.report.runs import KEY, REPEAT, FinishedRun, load_arrays, modality_names, scenario_of
from trainers.report.statistics import is_right
from trainers.report.style import model_styles, save
from trainers.report.tables import label, rows_of_metric
from utils.progress import Progress

log = logging.getLogger(__name__)
PICTURED = 6  # scenarios per model that get pictures and histograms


def training_sweep(frame: pd.DataFrame) -> pd.DataFrame:
    """Results on complete data of methods trained under several scenarios; ``scenario`` becomes that of training.

    Empty if there is one scenario only, or if a method has two runs of one scenario.
    """
    rows = frame[frame["scenario"] == "none"]
    rows = rows.assign(model=rows["method"], scenario=rows["train"])
    rows = rows.drop(columns="missing_rate", errors="ignore")  # that of the test
    is_sweep = rows["train"].nunique() > 1 and not rows.duplicated([*KEY, *REPEAT]).any()
    return rows.sort_values("train", key=lambda train: train != "none", kind="stable") if is_sweep else rows[:0]


def draw_figures(
    runs: Sequence[FinishedRun], summary: pd.DataFrame, sweep: pd.DataFrame, metrics: Sequence[str], folder: Path
) -> dict[str, list[Path]]:
    """Draw everything; section of the page -> its PNG files.

    Args:
        sweep: the summary of :func:`training_sweep`; with it, curves over test rates are those of complete training.
    """
    outcomes = outcome_jobs(runs, summary, modality_names(runs))
    jobs = [*_score_jobs(runs, summary, sweep, metrics), *outcomes, *_model_jobs(runs, summary)]
    drawn: dict[str, list[Path]] = {}
    for section, name, draw in Progress(jobs, desc="report: figures", disable=None, leave=False):
        if figure := draw():
            save(figure, folder / f"{name}.png", pdf=section in metrics or section == "outcomes")
            drawn.setdefault(section, []).append(folder / f"{name}.png")
    return drawn


def _score_jobs(
    runs: Sequence[FinishedRun], summary: pd.DataFrame, sweep: pd.DataFrame, metrics: Sequence[str]
) -> list[Job]:
    """Curves and bars of all models, per metric."""
    styles = model_styles(list((sweep if len(sweep) else summary)["model"].unique()))
    names = modality_names(runs)
    jobs: list[Job] = []
    for metric in metrics if len(sweep) else ():
        draw = partial(plots.degradation, xlabel="missing rate in training", modalities=names)
        rows = rows_of_metric(sweep, metric)
        jobs.append(("sweep", f"sweep_{slug(metric)}", partial(draw, rows, label(metric), styles)))
    at_rate_one = scenarios_at_rate_one(runs)
    for metric in metrics:
        for name, draw in (
            ("degradation", partial(plots.degradation, at_rate_one=at_rate_one, modalities=names)),
            ("noise", partial(plots.degradation, axis=NOISE_LEVEL, modalities=names)),
            ("scenarios", partial(plots.scenario_bars, modalities=names)),
        ):
            rows = rows_of_metric(summary, metric)
            jobs.append((metric, f"{name}_{slug(metric)}", partial(draw, rows, label(metric), styles)))
    return jobs


def _model_jobs(runs: Sequence[FinishedRun], summary: pd.DataFrame) -> list[Job]:
    """Examples, rewards and training curves of each model."""
    jobs: list[Job] = []
    runs_of_model: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.fold)):
        runs_of_model.setdefault((run.dataset, run.model), []).append(run)
    has_several_sets = summary["dataset"].nunique() > 1
    names = modality_names(runs)
    for (dataset, model), group in runs_of_model.items():
        stem, title = slug(f"{dataset}_{model}" if has_several_sets else model), f"{dataset}, {model}"
        scenarios = list(dict.fromkeys(s for run in group for s in run.frame["scenario"]))
        captions = {name: scenario_of(name).caption(names.get(dataset, ())) for name in scenarios}
        examples = [(s, f) for s in scenarios if (f := group[0].path / "examples" / f"{slug(s)}.npz").is_file()]
        if len(examples) > PICTURED:
            log.info("report: pictures of the first %d of %d scenarios of %s", PICTURED, len(examples), title)
        for scenario, file in examples[:PICTURED]:
            heading = f"{title}, {captions[scenario]}, {group[0].repeat}"
            jobs.append(("samples", f"samples_{stem}_{slug(scenario)}", partial(_samples, file, heading)))
        jobs.append(("rewards", f"rewards_{stem}", partial(_rewards, group, model, captions, title)))
        logs = {run.repeat: f for run in group if (f := run.path / "metrics.csv").is_file() and f.stat().st_size > 1}
        curves = {repeat: pd.read_csv(file) for repeat, file in logs.items()}
        jobs.append(("training", f"training_{stem}", partial(plots.training_curves, curves, title)))
    return jobs


def scenarios_at_rate_one(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], str]:
    """(data set, scenario of rate 1) -> the scenario with the same masks, for scenarios that hide the text or the image
    of some rows. The stored masks say which modality that is."""
    scenarios: dict[tuple[str, str], str] = {}
    for run in runs:
        parsed = [scenario_of(name) for name in run.frame["scenario"].unique()]
        candidates = [s for s in parsed if isinstance(s, ImageText) and s.strategy != "both" and s.noise is None]
        for scenario in sorted(candidates, key=lambda s: -s.rate):
            key = (run.dataset, replace(scenario, rate=1.0).name)
            file = run.predictions(run.model, scenario.name)
            if key not in scenarios and file.is_file():
                # The source may lack the other modality in some rows, but less often.
                scenarios[key] = f"whole_{load_arrays(file, 'missing')['missing'].mean(0).argmax()}"
    return scenarios


def _samples(file: Path, title: str) -> Figure:
    return pictures.samples(load_arrays(file), title)


def _rewards(runs: Sequence[FinishedRun], model: str, captions: Mapping[str, str], title: str) -> Figure | None:
    """Histograms of the rewards of a selecting model, pooled over its seeds; None for other models.

    Args:
        captions: of its scenarios, by name.
    """
    panels: dict[str, tuple[np.ndarray, ...]] = {}
    for scenario, caption in captions.items():
        parts = []
        for file in (f for run in runs if len(panels) < PICTURED and (f := run.predictions(model, scenario)).is_file()):
            data = load_arrays(file, "rewards", "accepted", "logits", "target")
            if np.isfinite(data.get("rewards", np.nan)).any():
                last, is_accepted = distributions.last_rewards(data["rewards"], data["accepted"])
                parts.append((last, is_accepted, is_right(data["logits"], data["target"])))
        if parts:
            panels[caption] = tuple(np.concatenate(part) for part in zip(*parts))
    return distributions.reward_histograms(panels, title) if panels else None
