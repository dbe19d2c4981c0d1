"""Data set, scenario titles and predictions of single runs, for figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from datasets.missingness import parse_scenario
from trainers.config.build import build_data
from trainers.report.runs import FinishedRun, gather, load_sorted
from utils.errors import UserError


def data_module(run: FinishedRun) -> Any:
    """The data module of a run, from its configuration."""
    return build_data(OmegaConf.create(run.config))


def class_names(run: FinishedRun) -> list[str]:
    """Names of the classes."""
    return list(data_module(run).class_names)


def scenario_title(run: FinishedRun, scenario: str) -> str:
    """Caption and name of a scenario: "text missing (whole_1)"."""
    if scenario == "none":
        return parse_scenario(scenario).caption()
    return f"{parse_scenario(scenario).caption(data_module(run).modality_names)} ({scenario})"


def observed_title(run: FinishedRun, scenario: str) -> str:
    """Title of a scenario by what is observed: "complete", "image only", "without image"; else its caption."""
    names = data_module(run).modality_names
    if not (hidden := hidden_modalities(run, scenario)):
        return parse_scenario(scenario).caption(names)
    observed = [name for name in names if name not in hidden]
    return f"{observed[0]} only" if len(observed) == 1 else f"without {' and '.join(hidden)}"


def hidden_modalities(run: FinishedRun, scenario: str) -> list[str]:
    """Names of the modalities that are missing in every row."""
    names = data_module(run).modality_names
    return [names[i] for i in parse_scenario(scenario).always_missing]


def check_one_data_set(runs: Sequence[FinishedRun], kind: str) -> None:
    """
    Raises:
        UserError: the runs are of several data sets.
    """
    if len(names := sorted({run.dataset for run in runs})) > 1:
        raise UserError(f"{kind} draws one data set, not {', '.join(names)}: give runs of one")


def sorted_predictions(run: FinishedRun, scenario: str, *keys: str) -> dict[str, np.ndarray]:
    """The named arrays of a run's predictions, as far as they were saved, in the order of the test split.

    Raises:
        UserError: no predictions of that scenario.
    """
    file = run.predictions(run.model, scenario)
    if not file.is_file():
        saved = sorted(f.stem for f in (run.path / "predictions").glob("*.npz"))
        raise UserError(f"{run.path} has no predictions of '{scenario}' (it has {', '.join(saved)})")
    return load_sorted(file, *keys)


def load_pair(
    with_proxies: Path, without: Path, scenario: str, *keys: str
) -> tuple[FinishedRun, list[dict[str, np.ndarray]]]:
    """Predictions of two runs on the same rows under the same scenario.

    Returns:
        The run with proxies; its arrays and those of the run without.

    Raises:
        UserError: a run is not finished, or the two differ in test rows, targets or masks.
    """
    runs = [gather([directory])[0][0] for directory in (with_proxies, without)]
    data = [sorted_predictions(run, scenario, "logits", "target", "missing", *keys) for run in runs]
    for key in ("index", "target", "missing"):
        if not np.array_equal(data[0][key], data[1][key]):
            raise UserError(
                f"{runs[0].path} and {runs[1].path} differ in the {key} of the test rows of '{scenario}': "
                "give two runs of one data set with the same missing.seed"
            )
    return runs[0], data
